"""Controllable generation: condition images, the encoder of hints and the pipeline."""
