"""Which texts a finetuning run learns from and is measured on."""

from __future__ import annotations

from orthotune.recipes.settings import WORLD, SFTSettings
from orthotune.training.text_data import Examples, examples_of, hold_out, load_examples
from orthotune.worlds import text as text_world


def examples_for(settings: SFTSettings) -> tuple[Examples, dict[str, Examples]]:
    """What to learn from, and what to measure on by domain (``new``, ``old``)."""
    examples = _load(settings.data, settings.data_format)
    if settings.eval_data:
        held_out: Examples | None = _load(settings.eval_data, settings.data_format)
    else:
        examples, held_out = hold_out(examples)
    old = _load(settings.old_data, "auto") if settings.old_data else None
    return examples, {name: given for name, given in (("new", held_out), ("old", old)) if given}


def _load(source: str, data_format: str) -> Examples:
    world, _, split = source.partition("/")
    if world != WORLD:
        return load_examples(source, data_format)
    rows = text_world.load_split(split)
    return examples_of([(f"{source}, {row['source']}", row) for row in rows], source, data_format)
