"""The built-in models and their data: how they are loaded, drawn and scored. The files are in ``orthotune_worlds``."""
