"""Putting an adapter of any readable format on any model: matching names, fitting settings, loading the numbers."""
