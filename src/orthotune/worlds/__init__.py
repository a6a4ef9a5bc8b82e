"""The built-in models, their data and their scores. The files are in the package ``orthotune_worlds``."""
