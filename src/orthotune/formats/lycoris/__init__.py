"""The formats of LyCORIS."""
