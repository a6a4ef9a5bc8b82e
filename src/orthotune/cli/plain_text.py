"""Escape control characters of texts from files before they are printed."""

from __future__ import annotations

from orthotune.files.plain_text import plain

__all__ = ["plain"]
