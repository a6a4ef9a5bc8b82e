"""How the weight of a base layer is stored: which weights can be read and written as they are."""
