"""The formats of sd-scripts (kohya-ss)."""
