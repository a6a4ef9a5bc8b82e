"""Which texts a finetuning run learns from and is measured on."""

from __future__ import annotations

from orthotune.recipes.settings import WORLD, SFTSettings
from orthotune.training.text_data import Examples, examples_of, hold_out, load_examples
from orthotune.worlds import text as text_world

#: word for no old domain
NOTHING = "none"
#: texts of the general set, and characters of each
GENERAL_TEXTS, GENERAL_LENGTH = 12, 1000


def examples_for(settings: SFTSettings) -> tuple[Examples, dict[str, Examples]]:
    """What to learn from, and what to measure on by domain (``new``, ``old``).

    Where nobody named data of the old domain, it is :func:`general_texts`.
    """
    examples = _load(settings.data, settings.data_format)
    if settings.eval_data:
        held_out: Examples | None = _load(settings.eval_data, settings.data_format)
    else:
        examples, held_out = hold_out(examples)
    old = general_texts() if settings.old_data is None else None
    if settings.old_data not in (None, NOTHING):
        old = _load(str(settings.old_data), "auto")
    return examples, {name: given for name, given in (("new", held_out), ("old", old)) if given}


def general_texts() -> Examples:
    """The package's small general set: the beginnings of some files of Python's standard library.

    Example:
        >>> len(general_texts().rows)
        12
    """
    rows = text_world.load_split("old_validation")[:GENERAL_TEXTS]
    return Examples([{"text": row["text"][:GENERAL_LENGTH]} for row in rows], "text", f"{WORLD}/old_validation")


def said_of_old(settings: SFTSettings) -> list[str]:
    """What a run's record says of its old domain: nothing where it was named."""
    if settings.old_data is None:
        return [
            f"old domain: none was named, so forgetting and drift are measured on {GENERAL_TEXTS} Python sources that "
            "come with the package. old_data=FILE names texts that the model must not forget, old_data=none none."
        ]
    return ["old domain: none, so forgetting and drift are not measured."] if settings.old_data == NOTHING else []


def _load(source: str, data_format: str) -> Examples:
    world, _, split = source.partition("/")
    if world != WORLD:
        return load_examples(source, data_format)
    rows = text_world.load_split(split)
    return examples_of([(f"{source}, {row['source']}", row) for row in rows], source, data_format)
