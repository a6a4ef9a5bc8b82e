"""How tensors of a name store rotations, for the formats of every tool that stores them so."""
