"""``orthotune evaluate drift``: how far an adapter moves a language model on texts that are not about its task."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer


def drift(
    adapter: Path = typer.Argument(help="Adapter of a causal language model: a folder or a file of any format."),
    data: str = typer.Option(
        ..., "--data", help="Texts that are not about the task: a file, a folder, a hub name, or text-world/SPLIT."
    ),
    base: str | None = typer.Option(None, "--base", help="Base model; the one that the adapter names by default."),
    max_length: int = typer.Option(512, "--max-length", min=2, help="Tokens that the model sees at once."),
    limit: int = typer.Option(200, "--limit", min=1, help="Texts to measure on, the first ones."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Compare the next-token distributions of base and adapted model on texts that are not about the task.

    Example: orthotune evaluate drift runs/demo/adapter --data text-world/old_test
    """
    found = measure(adapter, data, base, max_length, limit)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    typer.echo(f"divergence   {found['kl']:.5f} nats per token on average, {found['kl_largest']:.3f} at most")
    typer.echo(f"same choice  {found['same_choice']:.1%} of {found['tokens']:,} tokens")


def measure(adapter: Path, data: str, base: str | None, max_length: int, limit: int) -> dict[str, Any]:
    """What the subcommand says, as plain values ready for JSON.

    Raises:
        OrthotuneError: no base is known, or the data cannot be read.

    Example:
        >>> measure(Path("runs/demo/adapter"), "text-world/old_test", None, 512, 20)["kl"]  # doctest: +SKIP
        0.013
    """
    import torch

    from orthotune import load_adapter
    from orthotune.errors import OrthotuneError
    from orthotune.formats.roster import read_adapter
    from orthotune.metrics.drift import text_drift
    from orthotune.metrics.text_loss import token_rows
    from orthotune.training.causal_model import load_model, load_tokenizer
    from orthotune.worlds import text as text_world
    from orthotune_cli.base_model import WORLD

    named = base or read_adapter(adapter).config.get("base_model_name_or_path")
    if not named:
        raise OrthotuneError(f"the base model of {adapter}", got="none in its files", do="Name it with --base")
    source = str(text_world.MODEL) if named == WORLD else str(named)
    tokenizer = load_tokenizer(source)
    model, _ = load_adapter(load_model(source, torch.float32), adapter)
    rows = token_rows(tokenizer, _texts(data, limit), max_length)
    return {"adapter": str(adapter), "base": str(named), "data": data, **asdict(text_drift(model, rows))}


def _texts(data: str, limit: int) -> list[str]:
    from orthotune.training.text_data import load_examples
    from orthotune.worlds import text as text_world
    from orthotune_cli.base_model import WORLD

    name, _, split = data.partition("/")
    if name == WORLD:
        return [row["text"] for row in text_world.load_split(split)][:limit]
    return ["\n".join(map(_words, row.values())) for row in load_examples(data).rows[:limit]]


def _words(value: Any) -> str:
    return value if isinstance(value, str) else "\n".join(str(message["content"]) for message in value)
