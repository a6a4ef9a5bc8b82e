"""Comparisons of methods: what is gained against what is forgotten."""
