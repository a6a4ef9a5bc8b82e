"""An adapter's layers fitted to the modules of a model: which modules, with which settings, and what did not match."""
