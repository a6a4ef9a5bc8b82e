"""``orthotune evaluate drift``: how far an adapter moves a model on texts or prompts that are not about its task."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import typer

from orthotune.cli.evaluate_drift_images import WORLD as IMAGE_WORLD
from orthotune.cli.evaluate_drift_images import is_pipeline, measure_images
from orthotune.cli.evaluations import EVALUATIONS

#: Options of image models, as they are when nobody gives them.
IMAGE_OPTIONS = {key: EVALUATIONS["drift"].parameters[key][1].default for key in ("seed", "steps", "guidance", "model")}


def drift(
    *, adapter: Path, data: str | None, base: str | None, max_length: int, limit: int, as_json: bool, **image: Any
) -> None:
    """Measure and print how far an adapter changes next tokens, or images.

    Args:
        adapter: of a causal language model or of a diffusers pipeline, any format.
        data: texts or prompts that are not about the task; None for those of the built-in models.
        base: base model; None for the one that the adapter records.
        max_length: language models: tokens per sequence.
        limit: number of texts or prompts.
        as_json: print one JSON object.
        image: image models: ``seed``, ``steps``, ``guidance`` and ``model``, as ``measure_images`` takes them.
    """
    from orthotune.files.run_adapter import adapter_in

    adapter = adapter_in(adapter)
    named = base_of(adapter, base)
    if is_pipeline(named):
        found = measure_images(adapter, data, named, limit=limit, **image)
    else:
        if image != IMAGE_OPTIONS:
            raise typer.BadParameter(
                f"--seed, --steps, --guidance and --model are for image models; {named} is a language model"
            )
        found = measure(adapter, data, named, max_length, limit)
    typer.echo(json.dumps(found, indent=2) if as_json else "\n".join(lines(found)))


def base_of(adapter: Path, base: str | None) -> str:
    """The base model: ``base``, else the one that the adapter records, else the built-in pipeline for layers of a UNet.

    Raises:
        OrthotuneError: no base is given, and the adapter records none.
    """
    from orthotune.errors import AdapterFileError, OrthotuneError
    from orthotune.files.installed_worlds import current
    from orthotune.formats.registry import read_adapter
    from orthotune.operations.other_methods import other_method, recorded_base

    if base:
        return base
    if other_method(adapter) is not None and (recorded := recorded_base(adapter)):
        return current(recorded)
    try:
        state = read_adapter(adapter)
    except AdapterFileError:
        # A LoRA of an image run has no rotations to read; diffusers finds its file by this name.
        if (adapter / "pytorch_lora_weights.safetensors").is_file():
            return IMAGE_WORLD
        raise
    if named := state.config.get("base_model_name_or_path"):
        return current(str(named))
    if any("transformer_blocks" in name and "attentions" in name for name in (*state.layers, *state.transforms)):
        return IMAGE_WORLD
    raise OrthotuneError(
        f"the base model of {adapter}", got="no base recorded in its files", do="Name the base with --base"
    )


def lines(found: dict[str, Any]) -> list[str]:
    """The figures as printed lines.

    Example:
        >>> lines({"kl": 0.5, "kl_largest": 2.0, "same_choice": 0.75, "tokens": 8})[1]
        'same choice  75.0% of 8 tokens'
    """
    if "kl" in found:
        return [
            f"divergence   {found['kl']:.5f} nats per token on average, {found['kl_largest']:.3f} at most",
            f"same choice  {found['same_choice']:.1%} of {found['tokens']:,} tokens",
        ]
    lines = [f"pixels       {found['pixels']:.5f} of their range on average, in {found['pictures']} images"]
    if found["features"] is None:
        return [*lines, "features     not compared: name a vision model with --model"]
    lines.append(
        f"features     {found['features']:.5f} cosine distance on average, {found['features_largest']:.5f} at most"
    )
    if found["unrelated"] is not None:
        lines.append(f"unrelated    {found['unrelated']:.5f} between different images of the base")
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

    from orthotune.errors import DataError
    from orthotune.files.installed_worlds import world_of
    from orthotune.metrics.drift import text_drift
    from orthotune.operations.base_model import WORLD
    from orthotune.operations.other_methods import load_any
    from orthotune.recipes.sft_data import load_texts
    from orthotune.text.causal_model import load_model, load_tokenizer
    from orthotune.text.rendered_rows import rendered_rows

    if data is None and base != WORLD and world_of(base) != "text":
        raise DataError(
            f"texts for {base}", got="none", needed="texts that are not about the task", do="Name them with --data"
        )
    data = data or f"{WORLD}/old_test"
    examples = load_texts(data)  # before the model is loaded: a wrong name is reported at once
    examples = replace(examples, rows=examples.rows[:limit])
    tokenizer = load_tokenizer(base)
    model = load_any(load_model(base, torch.float32), adapter)
    rows = rendered_rows(tokenizer, examples, max_length)
    return {"adapter": str(adapter), "base": base, "data": data, **asdict(text_drift(model, rows))}
