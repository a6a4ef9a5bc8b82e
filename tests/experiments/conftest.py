"""Comparisons of runs of a few steps."""

from tests.support.known_curves import _known_curves  # noqa: F401
