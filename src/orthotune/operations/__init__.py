"""What is done with adapter files: load, hotswap, identify, inspect, convert, merge, export, combine; one a file."""
