"""The arguments of verbs that take a recipe: a file, then ``KEY=VALUE`` settings."""

from __future__ import annotations

from pathlib import Path


def recipe_and_settings(words: list[str]) -> tuple[Path | None, list[str]]:
    """Separate the recipe file, which comes first if there is one, from the ``KEY=VALUE`` settings.

    Example:
        >>> recipe_and_settings(["mine.yaml", "steps=5"])
        (PosixPath('mine.yaml'), ['steps=5'])
    """
    if words and ("=" not in words[0] or Path(words[0]).is_file()):
        return Path(words[0]), words[1:]
    return None, words
