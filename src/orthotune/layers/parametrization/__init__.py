"""Compute the rotation of an adapter's parameter once, and cache it without ever serving a stale value."""
