"""Which texts a finetuning run learns from and is measured on."""

from __future__ import annotations

from pathlib import Path

from orthotune.errors import DataError, nearest
from orthotune.files.installed_worlds import names_built_in
from orthotune.recipes.data_settings import DataSet
from orthotune.recipes.settings import GENERATED, NO_DATA, WORLD, SFTSettings
from orthotune.recipes.trainer_settings import TrainerSettings
from orthotune.text.data import LARGEST_HELD_OUT, Examples, Reading, examples_of, hold_out, load_examples
from orthotune.text.mixture import joined, mixed
from orthotune.text.written_texts import FILE, TEXTS
from orthotune.worlds import debian_texts
from orthotune.worlds import text as text_world

#: texts of the general set, and characters of each
GENERAL_TEXTS, GENERAL_LENGTH = 12, 1000


def examples_for(settings: SFTSettings) -> tuple[Examples, dict[str, Examples]]:
    """What to learn from, and what to measure on by domain (``new``, the target; ``old``, the source).

    Where nobody named data of the source domain, it is :func:`general_texts`.
    """
    sets = [load_texts(one.source, reading=_reading(one)) for one in settings.sets]
    if settings.eval_data:
        reading = Reading(settings.data_format, settings.columns, settings.roles, settings.system_prompt)
        held_out: Examples | None = load_texts(settings.eval_data, reading=reading)
    else:
        parted = [hold_out(one, LARGEST_HELD_OUT // len(sets)) for one in sets]
        sets, measured = [rest for rest, _ in parted], [part for _, part in parted if part]
        held_out = joined(measured) if measured else None
    examples = sets[0]
    if len(sets) > 1:
        examples = mixed(sets, [one.weight for one in settings.sets], settings.mixture_stop, settings.seed)
    old = source_examples(settings.old_data)
    return examples, {name: given for name, given in (("new", held_out), ("old", old)) if given}


def source_examples(old_data: str | None) -> Examples | None:
    """The texts that the setting ``old_data`` names: :func:`general_texts` where it names none, None for ``none``.

    Args:
        old_data: the setting.

    Raises:
        DataError: as for other data.

    Example:
        >>> source_examples("none") is None, len(source_examples(None).rows)
        (True, 12)
    """
    if old_data is None:
        return general_texts()
    return None if old_data == NO_DATA else load_texts(old_data, "auto")


def general_texts() -> Examples:
    """The package's small general set: the beginnings of some files of Python's standard library.

    Example:
        >>> len(general_texts().rows)
        12
    """
    rows = text_world.load_split("old_validation")[:GENERAL_TEXTS]
    return Examples([{"text": row["text"][:GENERAL_LENGTH]} for row in rows], "text", f"{WORLD}/old_validation")


def kept_examples(settings: SFTSettings) -> Examples | None:
    """The texts on which outputs are kept; None where nothing is kept, or the base is to write them.

    Raises:
        DataError: as for other data.
    """
    source = settings.keep_data
    if source in (None, GENERATED):
        return None
    if "/" not in source and not Path(source).exists() and nearest(source, [GENERATED], count=1):
        raise DataError(f"keep_data {source!r}", got="no such file", do=f"Did you mean {GENERATED!r}?")
    return load_texts(source, "auto")


def keep_notes(settings: SFTSettings) -> list[str]:
    """What a run's record notes about the texts on which outputs are kept: nothing where none are."""
    if not settings.keep:
        return []
    texts = settings.keep_data
    if texts == GENERATED:
        texts = f"{TEXTS} texts that the base itself writes, {FILE}"
    note = f"keep: {settings.keep:g} x KL(base || adapted) on {settings.keep_batch} rows a batch of {texts}."
    if _place(settings.keep_data) != _place(settings.old_data or f"{WORLD}/old_validation"):
        return [note]
    return [note, "keep_data is old_data: forgetting and drift are measured on texts that were trained on."]


def source_domain_notes(settings: SFTSettings | TrainerSettings) -> list[str]:
    """What a run's record notes about its source domain: nothing where it was named."""
    if settings.old_data is None:
        return [
            f"source domain: none was named, so forgetting and drift are measured on {GENERAL_TEXTS} Python sources "
            "that come with the package. old_data=FILE names texts that the model must not forget, old_data=none none."
        ]
    if settings.old_data == NO_DATA:
        return ["source domain: none, so forgetting and drift are not measured."]
    return []


def load_texts(source: str, data_format: str = "auto", reading: Reading | None = None) -> Examples:
    """The examples that a setting as ``data`` names: of a file, a folder, a hub data set, or a world's split.

    Args:
        source: a path, a hub name, or ``WORLD/SPLIT`` as ``text-world/old_test`` and ``manpages-fr/train``.
        data_format: as the setting of that name, where there is no ``reading``.
        reading: how the rows are read.

    Raises:
        DataError: nothing there, a broken line, texts that were not fetched yet, or a path here that has the name of
            built-in texts.

    Example:
        >>> len(load_texts("text-world/new_test").rows) > 10
        True
    """
    if (fetched := debian_texts.rows_of(source)) is not None:
        return examples_of(fetched, source, data_format, reading)
    if not names_built_in(source, [WORLD]):
        return load_examples(source, data_format, reading)
    rows = text_world.load_split(source.partition("/")[2])
    return examples_of([(f"{source}, {row['source']}", row) for row in rows], source, data_format, reading)


def _reading(one: DataSet) -> Reading:
    return Reading(one.format, one.columns, one.roles, one.system_prompt)


def _place(source: str | None) -> str:
    """Two ways to write one path are one place."""
    return str(Path(source).resolve()) if source and Path(source).exists() else str(source)
