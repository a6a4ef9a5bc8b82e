"""Rotations from parameters, and rotations applied to inputs and weights."""
