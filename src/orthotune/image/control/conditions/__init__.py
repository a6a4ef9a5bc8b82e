"""Kinds of control images: how each is computed from an image or read from a file."""
