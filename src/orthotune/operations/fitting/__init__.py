"""Fit the layers of an adapter to the modules of a model: matching, settings, and a report."""
