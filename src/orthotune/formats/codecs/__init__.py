"""Codecs: how tensors of a certain name store rotations. Each codec is shared by the formats that use it."""
