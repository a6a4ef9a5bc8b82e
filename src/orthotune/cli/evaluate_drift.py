"""``orthotune evaluate drift``: how far an adapter moves a model on texts or prompts that are not about its task."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from orthotune.cli.evaluate_drift_images import WORLD as IMAGE_WORLD
from orthotune.cli.evaluate_drift_images import is_pipeline, measure_images

STEPS = 20


def drift(
    adapter: Path = typer.Argument(help="Adapter of a causal language model or of a diffusers pipeline, any format."),
    data: str = typer.Option(
        None,
        "--data",
        help="What is not about the task. Texts: a file, a folder, a hub name, or text-world/SPLIT. Prompts: a text "
        "file, one per line. The embedded models have their own.",
    ),
    base: str = typer.Option(None, "--base", help="Base model; the one that the adapter names by default."),
    max_length: int = typer.Option(512, "--max-length", min=2, help="Texts: tokens that the model sees at once."),
    limit: int = typer.Option(200, "--limit", min=1, help="Texts or prompts to measure on, the first ones."),
    seed: int = typer.Option(0, "--seed", min=0, help="Pictures: noise of the first; the others count on."),
    steps: int = typer.Option(STEPS, "--steps", min=1, help="Pictures: steps of each drawing."),
    guidance: float = typer.Option(None, "--guidance", help="Pictures: default is the pipeline's usual one."),
    model: str = typer.Option(
        None, "--model", help="Pictures: vision model whose features are compared. Default: the image world's judge."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Compare base and adapted model on what is not about the task: next-token distributions, or pictures.

    Examples:

      orthotune evaluate drift runs/demo/adapter

      orthotune evaluate drift style.safetensors --base models/sdxl --data prompts.txt --model facebook/dino-vits16
    """
    named = base_of(adapter, base)
    if is_pipeline(named):
        found = measure_images(
            adapter, data, named, limit=limit, seed=seed, steps=steps, guidance=guidance, model=model
        )  # fmt: skip
    else:
        if (seed, steps, guidance, model) != (0, STEPS, None, None):
            raise typer.BadParameter(f"--seed, --steps, --guidance and --model are for pictures; {named} reads texts")
        found = measure(adapter, data, named, max_length, limit)
    typer.echo(json.dumps(found, indent=2) if as_json else "\n".join(told(found)))


def base_of(adapter: Path, base: str | None) -> str:
    """The base that was named, that the adapter records, or, for layers of a UNet, the embedded pipeline.

    Raises:
        OrthotuneError: none is known.
    """
    from orthotune.errors import AdapterFileError, OrthotuneError
    from orthotune.files.installed_worlds import current
    from orthotune.formats.registry import read_adapter

    if base:
        return base
    try:
        state = read_adapter(adapter)
    except AdapterFileError:
        # A LoRA of a run on images has no rotations to read; diffusers knows it by its name.
        if (adapter / "pytorch_lora_weights.safetensors").is_file():
            return IMAGE_WORLD
        raise
    if named := state.config.get("base_model_name_or_path"):
        return current(str(named))
    if any("transformer_blocks" in name and "attentions" in name for name in (*state.layers, *state.transforms)):
        return IMAGE_WORLD
    raise OrthotuneError(f"the base model of {adapter}", got="none in its files", do="Name it with --base")


def told(found: dict[str, Any]) -> list[str]:
    """The figures in lines.

    Example:
        >>> told({"kl": 0.5, "kl_largest": 2.0, "same_choice": 0.75, "tokens": 8})[1]
        'same choice  75.0% of 8 tokens'
    """
    if "kl" in found:
        return [
            f"divergence   {found['kl']:.5f} nats per token on average, {found['kl_largest']:.3f} at most",
            f"same choice  {found['same_choice']:.1%} of {found['tokens']:,} tokens",
        ]
    lines = [f"pixels       {found['pixels']:.5f} of their range on average, in {found['pictures']} pictures"]
    if found["features"] is None:
        return [*lines, "features     not compared: name a vision model with --model"]
    lines.append(
        f"features     {found['features']:.5f} cosine distance on average, {found['features_largest']:.5f} at most"
    )
    if found["unrelated"] is not None:
        lines.append(f"unrelated    {found['unrelated']:.5f} between different pictures of the base")
    return [*lines, f"seen by      {found['seen_by']}"]


def measure(adapter: Path, data: str | None, base: str, max_length: int, limit: int) -> dict[str, Any]:
    """The drift of an adapter of a language model, as plain values ready for JSON.

    Raises:
        OrthotuneError: the model, the adapter or the data cannot be read, or no data is named.

    Example:
        >>> measure(Path("runs/demo/adapter"), None, "text-world", 512, 20)["kl"]  # doctest: +SKIP
        0.013
    """
    import torch

    from orthotune import load_adapter
    from orthotune.errors import DataError
    from orthotune.files.installed_worlds import world_of
    from orthotune.metrics.drift import text_drift
    from orthotune.metrics.text_loss import token_rows
    from orthotune.operations.base_model import WORLD
    from orthotune.text.causal_model import load_model, load_tokenizer
    from orthotune.worlds import text as text_world

    if data is None and base != WORLD and world_of(base) != "text":
        raise DataError(
            f"texts for {base}", got="none", needed="texts that are not about the task", do="Name them with --data"
        )
    data = data or f"{WORLD}/old_test"
    source = str(text_world.MODEL) if base == WORLD else base
    texts = _texts(data, limit)  # before the model: a wrong name is told at once
    tokenizer = load_tokenizer(source)
    model, _ = load_adapter(load_model(source, torch.float32), adapter)
    rows = token_rows(tokenizer, texts, max_length)
    return {"adapter": str(adapter), "base": base, "data": data, **asdict(text_drift(model, rows))}


def _texts(data: str, limit: int) -> list[str]:
    from orthotune.operations.base_model import WORLD
    from orthotune.text.data import load_examples
    from orthotune.worlds import text as text_world

    name, _, split = data.partition("/")
    if name == WORLD:
        return [row["text"] for row in text_world.load_split(split)][:limit]
    return ["\n".join(map(_words, row.values())) for row in load_examples(data).rows[:limit]]


def _words(value: Any) -> str:
    return value if isinstance(value, str) else "\n".join(str(message["content"]) for message in value)
