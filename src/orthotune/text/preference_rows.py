"""The tokens of preferences as TRL's trainers make them, and how many of them are learned, cut and dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from orthotune.errors import DataError
from orthotune.metrics.text_loss import IGNORED, TokenRow
from orthotune.runs.data_files import Row
from orthotune.text.answers import common_length, tools_of
from orthotune.text.counted_rows import RowCounts
from orthotune.text.data import Examples
from orthotune.text.preferences import LABELLED, Preferences
from orthotune.text.rendered_rows import check_template


@dataclass(frozen=True)
class PreferenceRow:
    """The tokens of one example.

    Args:
        prompt: tokens that the answers have in common.
        answers: tokens of the chosen and of the rejected answer, or of the labelled one.
        label: of a labelled answer.
    """

    prompt: list[int]
    answers: tuple[list[int], ...]
    label: bool | None = None

    def rows(self, max_length: int) -> list[TokenRow]:
        """For each answer its tokens after the prompt, cut to ``max_length``; the answer alone is labelled.

        Example:
            >>> [(row.input_ids, row.labels) for row in PreferenceRow([1, 2], ([3, 4], [5])).rows(3)]
            [([1, 2, 3], [-100, -100, 3]), ([1, 2, 5], [-100, -100, 5])]
        """
        masked = [IGNORED] * len(self.prompt)
        return [TokenRow((self.prompt + one)[:max_length], (masked + one)[:max_length]) for one in self.answers]


@dataclass(frozen=True)
class PreferenceCounts(RowCounts):
    """What became of preferences; ``equal`` pairs have the same answer twice, and are skipped as blank rows are."""

    equal: int = 0

    @property
    def lost(self) -> float:
        """The share of all rows of which nothing is learned."""
        without = self.blank + self.equal
        return (self.dropped + without) / max(1, self.examples + without)

    def sentences(self, max_length: int | None, unused: Sequence[str] = ()) -> str:
        """What a run says of its examples before it trains.

        Example:
            >>> PreferenceCounts(9, 200, 80, equal=1).sentences(64)
            'data: 9 examples, 200 tokens, 80 of them learned. 1 pairs have the same answer twice and are skipped.'
        """
        found = super().sentences(max_length, unused)
        return f"{found} {self.equal:,} pairs have the same answer twice and are skipped." if self.equal else found


def tokenized(tokenizer: Any, row: Row) -> PreferenceRow:
    """The tokens of one example, as TRL's trainers make them: an end token closes texts, a chat template dialogues.

    Args:
        tokenizer: of the model.
        row: of :class:`~orthotune.text.preferences.Preferences`.
    """
    prompt = row["prompt"]
    answers = [row[column] for column in ("chosen", "rejected", "completion") if column in row]
    if isinstance(prompt, list):
        alone = _render(tokenizer, prompt, row, add_generation_prompt=True)
        both = [_render(tokenizer, prompt + answer, row) for answer in answers]
    else:
        alone, end = list(tokenizer(prompt)["input_ids"]), tokenizer.eos_token
        closed = [answer if answer.endswith(end) else answer + end for answer in answers]
        both = [list(tokenizer(prompt + answer)["input_ids"]) for answer in closed]
    # Tokens may merge across the boundary, and templates may render a prompt alone in another way.
    length = min(common_length(alone, ids) for ids in both)
    return PreferenceRow(alone[:length], tuple(ids[length:] for ids in both), row.get("label"))


def kept_rows(
    tokenizer: Any, preferences: Examples, max_length: int, *, complete: bool = False
) -> tuple[Any, list[PreferenceRow], PreferenceCounts]:
    """The examples of which something is learned in ``max_length`` tokens.

    Args:
        tokenizer: of the model.
        preferences: pairs or labelled answers.
        max_length: tokens of a prompt with its answer.
        complete: the trainer drops examples that are longer, where others cut off their ends.

    Returns:
        The examples that are left, their tokens, and the counts of all.

    Raises:
        DataError: dialogues for a tokenizer without a chat template.
    """
    check_template(tokenizer, preferences)
    kept, rows, tokens, trained, cut = [], [], 0, 0, 0
    for row in preferences.rows:
        found = tokenized(tokenizer, row)
        cuts = found.rows(max_length)
        too_long = [len(found.prompt) + len(one) > max_length for one in found.answers]
        # Answers that differ beyond max_length alone teach nothing.
        same = len(cuts) == 2 and cuts[0].input_ids == cuts[1].input_ids
        if len(found.prompt) >= max_length or same or (complete and any(too_long)):
            continue
        kept.append(row)
        rows.append(found)
        cut += any(too_long)
        tokens += sum(len(one.input_ids) for one in cuts)
        trained += sum(label != IGNORED for one in cuts for label in one.labels)
    counts = PreferenceCounts(
        len(preferences.rows), tokens, trained, cut, len(preferences.rows) - len(kept), preferences.blank,
        equal=preferences.equal if isinstance(preferences, Preferences) else 0,
    )  # fmt: skip
    return replace(preferences, rows=kept), rows, counts


def refuse_lost(counts: PreferenceCounts, source: str, max_dropped: float, max_length: int) -> None:
    """Refuse data of which too large a share teaches nothing.

    Args:
        counts: of the data.
        source: for the message.
        max_dropped: the largest share.
        max_length: of the run, for the message.

    Raises:
        DataError: the share is larger, or nothing is left.
    """
    left = counts.examples - counts.dropped
    if counts.lost <= max_dropped and left:
        return
    raise DataError(
        f"data {source!r}",
        got=f"{counts.dropped} of {counts.examples} examples with nothing to learn in {max_length} tokens, "
        f"{counts.blank} rows with an empty answer, {counts.equal} pairs with the same answer twice",
        needed=f"at most {max_dropped:.0%} of the rows (max_dropped)" if left else "an example to learn from",
        do="Pass a larger max_length, or max_dropped=1 to train on what is left"
        if left
        else "Pass a larger max_length",
    )


def learned_rows(rows: Sequence[PreferenceRow], max_length: int) -> list[TokenRow]:
    """The answers that a model is to learn: the chosen ones, or those with label true.

    Args:
        rows: tokens of the examples.
        max_length: tokens of a row.
    """
    return [row.rows(max_length)[0] for row in rows if row.label is not False]


def labels_needed(preferences: Examples, name: str) -> None:
    """Refuse labelled answers of which all have the same label, so that nothing can be learned.

    Args:
        preferences: to measure on, or to learn from.
        name: of the setting that names them, for the message.

    Raises:
        DataError: the same label everywhere.
    """
    labels = {row["label"] for row in preferences.rows} if preferences.format == LABELLED else {True, False}
    if len(labels) < 2:
        raise DataError(
            f"{name} {preferences.source!r}",
            got=f"{len(preferences.rows)} answers, all with the same label",
            needed="answers with label true and answers with label false",
        )


def _render(tokenizer: Any, messages: list[Any], row: Row, **options: Any) -> list[int]:
    return list(tokenizer.apply_chat_template(messages, tools=tools_of(row), return_dict=True, **options)["input_ids"])
