"""Texts that a base model generates, to keep its outputs on where its pretraining data is not available."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

from orthotune.errors import DataError
from orthotune.files.atomic import write_bytes, write_text
from orthotune.files.json_file import json_line, read_json_lines
from orthotune.metrics.decoding import continued
from orthotune.metrics.text_loss import TokenRow
from orthotune.runs.adapter_off import adapter_off
from orthotune.runs.directory import RunDirectory

#: how many are written, and how many at the same time, which a cache of keys and values must fit beside
TEXTS, AT_ONCE = 64, 16
FILE = "keep-texts.jsonl"


def write_texts(model: Any, tokenizer: Any, path: Path, max_length: int, seed: int, count: int = TEXTS) -> None:
    """Let the base of ``model`` write ``count`` texts into the JSONL file ``path``: ``text``, and its ``input_ids``.

    Each begins with the begin token, or the end token where the tokenizer has no other, and goes on as the model
    predicts, token by token at temperature 1 with nothing cut off, to the end token or to ``max_length`` tokens.
    The random state is left as it was.
    """
    rows: list[list[int]] = []
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        for start in range(0, count, AT_ONCE):
            rows += _write(model, tokenizer, min(AT_ONCE, count - start), max_length)
    # The tokens too: what was cut in the middle of a letter would come back from its text as others.
    lines = [{"text": tokenizer.decode(row[1:], skip_special_tokens=True), "input_ids": row} for row in rows]
    write_text(path, "".join(map(json_line, lines)))


def read_texts(path: Path) -> list[TokenRow]:
    """The rows of a file of :func:`write_texts`, every token but the first counted.

    Raises:
        DataError: it is missing or damaged.
    """
    try:
        lines = [line["input_ids"] for _, line in read_json_lines(path)]
        rows = [TokenRow([int(token) for token in ids], [int(token) for token in ids]) for ids in lines]
        if not rows:
            raise ValueError("no text in it")
    except (ValueError, TypeError, KeyError) as fault:
        raise DataError(
            f"texts in {path}",
            got="no such file" if not path.exists() else f"{type(fault).__name__}: {fault}",
            needed="the texts that this run began with",
            do="Put the file back, or begin a new run with output=PATH",
        ) from fault
    return rows


def texts_of_run(directory: RunDirectory, checkpoint: Path | None, trainer: Trainer) -> list[TokenRow]:
    """The texts that the base of ``trainer`` wrote: a new run lets the base write them, a resumed one reads them.

    Args:
        directory: where the texts are kept.
        checkpoint: that the run is resumed from; None for a new run.
        trainer: with the adapted model, the tokenizer, the length of a text and the seed.

    Raises:
        DataError: the texts of a resumed run are missing or damaged.
    """
    path = directory.path / FILE
    if checkpoint is None:
        write_texts(trainer.model, trainer.processing_class, path, trainer.args.max_length, trainer.args.seed)
        return read_texts(path)
    before = checkpoint.parents[1] / FILE
    rows = read_texts(before)
    if before.resolve() != path.resolve():  # a checkpoint of another folder
        write_bytes(path, before.read_bytes())
    return rows


def _write(model: Any, tokenizer: Any, count: int, max_length: int) -> list[list[int]]:
    first = tokenizer.bos_token_id
    begin = [tokenizer.eos_token_id if first is None else first]
    with adapter_off(model):
        return [begin + row for row in continued(model, tokenizer, [begin] * count, max_length - 1, sample=True)]
