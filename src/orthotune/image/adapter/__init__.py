"""The adapter of an image run: its settings, targets and files."""
