"""Adapters served unmerged by engines of other projects, many at once."""
