"""Measure the effect of an adapter on each layer, and derive warnings with remedies."""
