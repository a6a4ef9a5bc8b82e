"""The formats of the original OFT program, Zeju1997/oft."""
