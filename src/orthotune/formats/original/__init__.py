"""The formats of the original program, Zeju1997/oft."""
