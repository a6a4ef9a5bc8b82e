"""The embedded default models and data, with the scripts that built them."""
