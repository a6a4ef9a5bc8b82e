"""What it costs to measure the held-out rows, stated before the first step."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from orthotune.metrics.text_loss import TokenRow, batches_of, mean_loss


def cost_sentence(
    model: Any, domains: Mapping[str, Sequence[TokenRow]], times: int, *, timed: bool = True,
    fewer: str = "eval_tokens=N measures fewer, eval_every=N less often",
) -> str:  # fmt: skip
    """Rows, tokens and batches of a measurement, and how long one takes by the time of its first batch.

    Args:
        model: that is measured.
        domains: rows by domain, ``new`` and ``old``.
        times: measurements over the run.
        timed: run the first batch, which changes nothing in the model.
        fewer: settings that lower the cost, added where it is more than a minute.

    Returns:
        One sentence; empty where nothing is measured.

    Example:
        >>> cost_sentence(None, {}, 6)
        ''
    """
    parts, batches, first = [], 0, None
    for name, rows in domains.items():
        if not rows:
            continue
        found = list(batches_of(model, rows))
        first = first or [rows[place] for place in found[0]]
        batches += len(found)
        tokens = sum(len(row.input_ids) for row in rows)
        parts.append(f"{len(rows):,} {'target' if name == 'new' else 'source'} rows ({tokens:,} tokens)")
    if first is None:
        return ""
    sentence = f"evaluation: {' and '.join(parts)} in {batches} batches, {times} times"
    if not timed:
        return f"{sentence}."
    began = time.monotonic()
    mean_loss(model, first)
    each = (time.monotonic() - began) * batches
    more = f". {fewer}" if each * times > 60 else ""
    return f"{sentence}; about {_spoken(each)} each by the first batch, {_spoken(each * times)} in all{more}."


def _spoken(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min"
