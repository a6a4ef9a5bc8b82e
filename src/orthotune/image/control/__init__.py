"""Controllable generation: control images, their encoder and the pipeline."""
