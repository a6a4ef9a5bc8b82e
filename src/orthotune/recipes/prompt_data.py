"""Which prompts a run learns from and is measured on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from orthotune.recipes.prompt_settings import PromptSettings
from orthotune.text.data import Examples, hold_out, placed_rows
from orthotune.text.prompts import Prompts, prompts_of
from orthotune.worlds import checkable_prompts


@dataclass(frozen=True)
class PromptData:
    """The prompts of a run.

    Args:
        learned: to learn from.
        held_out: to measure on; None where there are too few rows to hold some out.
    """

    learned: Prompts
    held_out: Prompts | None


def prompt_data(settings: PromptSettings, needs: Mapping[str, str] | None = None) -> PromptData:
    """The prompts that the settings name.

    Args:
        settings: of the run.
        needs: columns that every row must have, and what needs each of them.

    Raises:
        DataError: no such data, or rows without what is needed.

    Example:
        >>> from orthotune.recipes.grpo import GRPOSettings
        >>> len(prompt_data(GRPOSettings()).held_out.rows)
        32
    """
    learned = load_prompts(settings.data, settings.prompt_column, needs)
    if settings.eval_data:
        held_out: Prompts | None = load_prompts(settings.eval_data, settings.prompt_column, needs)
    else:
        rest, chosen = hold_out(Examples(learned.rows, "prompt", learned.source))
        learned = replace(learned, rows=rest.rows)
        held_out = replace(learned, rows=chosen.rows, blank=0) if chosen else None
    if held_out:
        held_out = replace(held_out, rows=held_out.rows[: settings.eval_prompts])
    return PromptData(learned, held_out)


def load_prompts(source: str, column: str, needs: Mapping[str, str] | None = None) -> Prompts:
    """The prompts that a setting as ``data`` names: of a file, a folder, a hub data set, or a set of the package.

    Args:
        source: a path, a hub name, ``python-methods/SPLIT`` or ``arithmetic/SPLIT``.
        column: with the prompts.
        needs: columns that every row must have, and what needs each of them.

    Raises:
        DataError: nothing there, or rows without what is needed.
    """
    made = checkable_prompts.rows_of(source)
    rows: list[tuple[str, dict[str, Any]]] = (
        placed_rows(source) if made is None else [(f"{source}, row {place}", row) for place, row in enumerate(made)]
    )
    return prompts_of(rows, source, column, needs)
