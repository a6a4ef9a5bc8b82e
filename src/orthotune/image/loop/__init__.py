"""The training loop of image models."""
