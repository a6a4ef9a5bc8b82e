"""A page in the browser over the same recipes, runs and operations as the command line."""
