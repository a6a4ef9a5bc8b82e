"""What a run on preferences learns from and is measured on, read and counted before the model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from orthotune.files.installed_worlds import names_built_in
from orthotune.metrics.text_loss import TokenRow
from orthotune.recipes.preference_settings import PreferenceSettings
from orthotune.recipes.source_domain import LOOKED_AT, NEW, OLD, domain_rows
from orthotune.recipes.text_job import source_of
from orthotune.recipes.text_settings import WORLD
from orthotune.recipes.trainer_settings import passed_arguments
from orthotune.runs.data_files import Row
from orthotune.runs.directory import RunDirectory
from orthotune.text.causal_model import choose_dtype, load_tokenizer
from orthotune.text.counted_rows import TRAIN
from orthotune.text.data import Examples, placed_rows
from orthotune.text.preference_rows import (
    PreferenceCounts,
    PreferenceRow,
    kept_rows,
    labels_needed,
    learned_rows,
    refuse_lost,
)
from orthotune.text.preferences import LABELLED, Preferences, held_out_from, labelled_of, pairs_of, shuffled
from orthotune.text.rewinding import overlap
from orthotune.worlds.text_preferences import load_pairs


@dataclass(frozen=True)
class PreferenceData:
    """What a run learns from and is measured on.

    Args:
        train: the examples of which something is learned.
        rows: tokens of these.
        held_out: tokens of the held-out examples.
        domains: rows of the target and the source domain.
        counts: by domain, for the record.
        tokenizer: that made the tokens.
        arguments: of the trainer.
        notes: sentences for the start of the run.
    """

    train: Examples
    rows: list[PreferenceRow]
    held_out: list[PreferenceRow]
    domains: dict[str, list[TokenRow]]
    counts: dict[str, PreferenceCounts]
    tokenizer: Any
    arguments: Any
    notes: list[str] = field(default_factory=list)


def load(settings: PreferenceSettings) -> PreferenceData:
    """Read, tokenize and count what a run learns from and is measured on, and make the trainer's arguments.

    Args:
        settings: of the run.

    Raises:
        DataError: data that is missing, of another form, or with too little to learn from.
        RecipeError: fields that the trainer's config refuses.
    """
    dtype, checkpoints = choose_dtype(settings.dtype), RunDirectory(settings.output).checkpoints
    arguments = passed_arguments(settings, checkpoints, dtype, max_length=settings.max_length)
    given, others = examples_for(settings)
    tokenizer = load_tokenizer(source_of(settings))
    train, rows, counts = kept_rows(tokenizer, given, settings.max_length, complete=settings.complete)
    refuse_lost(counts, given.source, settings.max_dropped, settings.max_length)
    labels_needed(train, "data")
    notes, all_counts = [counts.sentences(settings.max_length, given.unused)], {TRAIN: counts}
    held_out: list[PreferenceRow] = []
    if others is None:
        notes.append(
            "new: too few prompts in data to hold some out, so nothing is measured on. eval_data=FILE names some."
        )
    else:
        measured, held_out, all_counts[NEW] = kept_rows(
            tokenizer, others, settings.max_length, complete=settings.complete
        )
        if all_counts[NEW].dropped:
            found = all_counts[NEW]
            notes.append(f"new: {found.dropped:,} of {found.examples:,} held-out examples do not fit in max_length.")
        if held_out and settings.eval_data:
            labels_needed(measured, "eval_data")
        elif len({row.label for row in held_out}) < 2 and settings.form == LABELLED:
            held_out = []  # what was held out by chance and is left has one label alone
        notes += _shared_prompts(rows, held_out)
    domains = {}
    if settings.predicts:
        domains = domain_rows(settings, tokenizer, learned_rows(held_out, settings.max_length))
        notes += _overlaps(rows, domains, settings)
    return PreferenceData(train, rows, held_out, domains, all_counts, tokenizer, arguments, notes)


def examples_for(settings: PreferenceSettings) -> tuple[Preferences, Examples | None]:
    """What to learn from, in an order that the seed decides, and what to measure on.

    Args:
        settings: of the run.

    Raises:
        DataError: data that is missing or of another form.
    """
    examples = load_preferences(settings.data, settings.form)
    held_out: Examples | None
    if settings.eval_data:
        held_out = load_preferences(settings.eval_data, settings.form)
    else:
        examples, held_out = held_out_from(examples)
    return shuffled(examples, settings.seed), held_out


def load_preferences(source: str, form: str) -> Preferences:
    """The preferences that a setting as ``data`` names: of a file, a folder, a hub data set, or the text world.

    Args:
        source: a path, a hub name, or ``text-world/SPLIT``.
        form: ``pairs`` or ``labelled``.

    Raises:
        DataError: nothing there, a broken line, columns of another form, or a path here that has the name of the world.

    Example:
        >>> len(load_preferences("text-world/new_test", "pairs").rows) > 10
        True
    """
    if names_built_in(source, [WORLD]):
        pairs = _without_sources(source.partition("/")[2])
        rows = [(f"{source}, pair {number}", row) for number, row in enumerate(pairs, start=1)]
    else:
        rows = placed_rows(source)
    return (labelled_of if form == LABELLED else pairs_of)(rows, source)


def tokenized_rows(settings: PreferenceSettings, training: int) -> tuple[dict[str, list[TokenRow]], list[TokenRow]]:
    """The held-out rows of a run by domain, and the answers of the first examples that it learned from.

    Args:
        settings: of the run; ``eval_tokens`` limits the held-out rows of each domain.
        training: number of examples.

    Raises:
        DataError: the data is missing or of another form.
    """
    found = load(settings)
    return found.domains, learned_rows(found.rows[:training], settings.max_length)


def _without_sources(split: str) -> list[Row]:
    return [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in load_pairs(split)]


def _shared_prompts(rows: Sequence[PreferenceRow], held_out: Sequence[PreferenceRow]) -> list[str]:
    """A note about held-out examples whose prompt is learned from, too: these are easier than new ones."""
    known = {tuple(row.prompt) for row in rows if row.prompt}
    shared = sum(tuple(row.prompt) in known for row in held_out)
    if not shared:
        return []
    return [f"new: the prompts of {shared:,} of {len(held_out):,} held-out examples are learned from as well."]


def _overlaps(
    rows: Sequence[PreferenceRow], domains: dict[str, list[TokenRow]], settings: PreferenceSettings
) -> list[str]:
    """A note about old texts that are learned from: how much of them is forgotten does not show."""
    learned = learned_rows(rows[:LOOKED_AT], settings.max_length)
    share = overlap(learned, domains.get(OLD, []))
    return [f"old: {share:.0%} of the old texts share a passage with what is learned; name others."] if share else []
