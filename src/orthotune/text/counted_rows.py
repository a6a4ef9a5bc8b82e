"""The rows that TRL's trainer makes of examples, counted: how many tokens are learned, and what is lost on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from orthotune.errors import DataError
from orthotune.metrics.text_loss import IGNORED

#: The data set to learn from, and the texts on which outputs are kept: all of their tokens count.
TRAIN, KEPT = "train", "kept"


@dataclass(frozen=True)
class RowCounts:
    """What became of the examples of one domain.

    Args:
        examples: that were given, without blank ones.
        tokens: in the rows that are left, after cutting.
        trained_tokens: those of them that the loss counts.
        cut: examples that are longer than ``max_length`` and lose their end.
        dropped: examples of which nothing to learn is left.
        blank: rows of the data without any text.
        split: dialogues that became several examples, since the chat template writes an answer in another way once
            others follow.
    """

    examples: int
    tokens: int
    trained_tokens: int
    cut: int = 0
    dropped: int = 0
    blank: int = 0
    split: int = 0

    @property
    def lost(self) -> float:
        """The share of all rows, blank ones too, of which nothing is learned."""
        return (self.dropped + self.blank) / max(1, self.examples + self.blank)

    def record(self) -> dict[str, int]:
        """The numbers by name, for ``run.json``."""
        found = asdict(self)
        return found if self.split else {name: value for name, value in found.items() if name != "split"}

    def sentences(self, max_length: int | None, unused: Sequence[str] = ()) -> str:
        """What a run says of its examples before it trains.

        Example:
            >>> RowCounts(16, 400, 96, dropped=8).sentences(48)
            'data: 16 examples, 400 tokens, 96 of them learned. 8 have nothing to learn in 48 tokens (max_length).'
        """
        found = [f"data: {self.examples:,} examples, {self.tokens:,} tokens, {self.trained_tokens:,} of them learned."]
        if self.dropped:
            found.append(f"{self.dropped:,} have nothing to learn in {max_length} tokens (max_length).")
        if self.cut:
            found.append(f"{self.cut:,} lose what is beyond {max_length} tokens (max_length).")
        if self.blank:
            found.append(f"{self.blank:,} blank rows are skipped.")
        if self.split:
            found.append(
                f"{self.split:,} dialogues are several examples: the chat template writes an answer in another way "
                "once others follow."
            )
        if unused:
            found.append(f"Columns that are not used: {', '.join(unused)}.")
        return " ".join(found)


class CountingSFTTrainer(SFTTrainer):
    """TRL's trainer, which counts the rows of every data set while it prepares them: ``row_counts``, by its name.

    The data set to learn from is called ``train``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.row_counts: dict[str, RowCounts] = {}
        super().__init__(*args, **kwargs)

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: SFTConfig, packing: bool, formatting_func: Any,
        dataset_name: str,
    ) -> Any:  # fmt: skip
        # The rows are tokens with labels already, which TRL cuts, filters and packs.
        self.row_counts[dataset_name] = counted(dataset, args.max_length, packing)
        return super()._prepare_dataset(dataset, processing_class, args, packing, formatting_func, dataset_name)


def counted(rows: Dataset, max_length: int | None, packed: bool) -> RowCounts:
    """Count tokenized rows in full length, as TRL will cut and drop them.

    Args:
        rows: with ``input_ids`` and ``labels``.
        max_length: tokens that a row may have; None cuts nothing.
        packed: rows are wrapped or packed into longer ones, which cuts none of them off.
    """
    limit = None if packed else max_length
    tokens = trained = cut = dropped = 0
    for row in rows:
        labels = row["labels"][:limit]
        learned = sum(label != IGNORED for label in labels)
        if not learned and not packed:
            dropped += 1
            continue
        cut += len(row["labels"]) > len(labels)
        tokens, trained = tokens + len(labels), trained + learned
    return RowCounts(len(rows), tokens, trained, cut, dropped)


def refuse_lost(counts: RowCounts, source: str, max_dropped: float, max_length: int | None) -> None:
    """Refuse data of which too large a share teaches nothing.

    Raises:
        DataError: the share of rows that are dropped is above ``max_dropped``.
    """
    if counts.lost > max_dropped:
        raise DataError(
            f"data {source!r}",
            got=f"{counts.dropped} of {counts.examples} examples with nothing to learn in their first {max_length} "
            f"tokens, and {counts.blank} blank rows",
            needed=f"at most {max_dropped:.0%} of the rows (max_dropped)",
            do="Pass a larger max_length, or max_dropped=1 to train on what is left",
        )
