"""The adapter of an image run: settings, targets and files."""
