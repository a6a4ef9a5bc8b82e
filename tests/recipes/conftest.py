"""Recipes that are run for a few steps."""

from tests.support.known_curves import _known_curves  # noqa: F401
