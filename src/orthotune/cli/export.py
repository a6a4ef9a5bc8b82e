"""``orthotune export``: write an adapter of any format as a merged model, a LoRA, or weight differences."""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import typer

from orthotune.cli.bytes_bar import bytes_bar
from orthotune.cli.merge import STRENGTH_KIND, StrengthKind
from orthotune.cli.reading import BOFT_CONV, COFT, EPS, PROJECT, SERIES, read_options

if TYPE_CHECKING:
    from orthotune.operations.fitting.report import LoadReport
    from orthotune.operations.gguf_file.write import WrittenGguf
    from orthotune.rotation import strength as strengths
    from orthotune.text.data import Examples


#: Texts that predictions are compared on, at most.
HELD_OUT = 100


class Kind(str, Enum):
    """The targets of an export."""

    DENSE = "dense"
    LORA = "lora"
    DIFF = "diff"
    GGUF = "gguf"


class GgufType(str, Enum):
    """Types of the weights in a GGUF file."""

    F16 = "f16"
    BF16 = "bf16"
    Q8_0 = "q8_0"


def export(
    adapter: Path = typer.Argument(help="Adapter of any readable format: a folder or a file."),
    out: Path = typer.Argument(
        help="Output folder, or output file if the base is one file; appears when it is complete."
    ),
    base: Path = typer.Option(
        ..., "--base", "-b", help="Base model: its folder, a diffusers folder, or a .safetensors file."
    ),
    to: Kind = typer.Option(
        ..., "--to", help="dense: merged model. lora: by SVD. diff: change of each weight. gguf: for llama.cpp, Ollama."
    ),
    rank: int = typer.Option(
        None, "--rank", min=1, help="Only for lora: rank of each layer; with --error, the largest rank."
    ),
    error: float = typer.Option(None, "--error", help="Only for lora: largest relative error of each layer."),
    held_out: str = typer.Option(
        None, "--held-out", help="Only for lora of a language model: texts to compare its predictions on, 100 at most."
    ),
    gguf_type: GgufType = typer.Option(
        None, "--gguf-type", help="Only for gguf: type of the weights; f16 if not given."
    ),
    converter: Path = typer.Option(
        None, "--converter", help="Only for gguf: llama.cpp's convert_hf_to_gguf.py, or its folder; it is then called."
    ),
    series: str = SERIES,
    coft: bool = COFT,
    eps: float = EPS,
    project: str = PROJECT,
    boft_conv: str = BOFT_CONV,
    strength: float = typer.Option(
        1.0, "--strength", "-t", help="Strength of the adapter: 0 is the base, 1 the adapter as trained."
    ),
    kind: StrengthKind = typer.Option(None, "--strength-kind", help=STRENGTH_KIND),
    partial: bool = typer.Option(False, "--partial", help="Skip layers of the adapter that the base does not have."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace what is at OUT."),
) -> None:
    """Export an adapter with the weights of its base, for tools that cannot load rotations.

    `dense` writes merged files of the base, with about one tensor in memory at a time; after an interruption, the same
    command continues. `lora` prints and writes the relative error of each layer, and with `--held-out` how far its
    predictions are from the adapter's. `diff` is exact. `gguf` writes a folder with a GGUF file and a Modelfile for
    Ollama, or the file alone where OUT ends in .gguf; what the gguf library cannot write is left to llama.cpp's
    converter, whose command is printed.

    Examples:

      orthotune export style.safetensors merged --base stable-diffusion-v1-5 --to dense

      orthotune export runs/sft/adapter lora --base models/llama --to lora --error 0.05

      orthotune export runs/sft/adapter gguf --base models/llama --to gguf --gguf-type q8_0
    """
    if to is not Kind.LORA and (rank is not None or error is not None):
        raise typer.BadParameter("--rank and --error are for --to lora")
    if to is not Kind.LORA and held_out is not None:
        raise typer.BadParameter("--held-out is for --to lora")
    if to is Kind.LORA and rank is None and error is None:
        raise typer.BadParameter("--to lora needs --rank or --error")
    options = read_options(series, coft, eps, project, boft_conv)
    chosen = cast("strengths.Kind | None", kind and kind.value)
    texts = None if held_out is None else _held_out(held_out, str(base))
    from orthotune.operations.export import export as exported
    from orthotune.tuner.lora_conversion import LowRankLayer

    def tell(layer: LowRankLayer) -> None:
        typer.echo(f"{layer.error:9.2e}  rank {layer.rank:<4} {layer.layer}")

    def report(found: LoadReport) -> None:
        typer.echo(str(found))
        if to is Kind.LORA:
            typer.echo("relative error of each layer")

    with bytes_bar() as progress:
        done = exported(
            adapter, out, base, to.value, rank=rank, error=error, strict=not partial, overwrite=overwrite,
            gguf_type=cast("Any", gguf_type and gguf_type.value), converter=converter, strength=strength,
            kind=chosen, on_report=report, on_layer=tell, progress=progress, **options,
        )  # fmt: skip
    if to is Kind.DIFF:
        typer.echo(f"{done.changes} tensors of change, exact for this base only")
    if to is Kind.LORA:
        worst = max(done.layers, key=lambda layer: layer.error)
        typer.echo(f"{worst.error:9.2e}  at most, in {worst.layer}")
        if texts is not None:
            typer.echo("\n".join(_predictions(adapter, out, str(base), texts, strength, chosen, options)))
    if done.gguf is not None:
        _tell_gguf(done.gguf)
    typer.echo(f"written  {out}")


def _tell_gguf(made: WrittenGguf) -> None:
    if made.by == "gguf":
        typer.echo(f"{made.file}, through the gguf library")
    elif made.by:
        typer.echo(f"{made.file}, by {made.by}")
    else:
        typer.echo(f"not written through the gguf library: {made.reason}")
        typer.echo("the merged model is written; with a clone of llama.cpp, the GGUF file is made by")
        typer.echo(f"  {made.command}")


def _held_out(source: str, base: str) -> Examples:
    """The texts to compare predictions on, read before anything is written."""
    from orthotune.errors import ConfigError
    from orthotune.files.json_file import read_json
    from orthotune.operations.base_model import place_of
    from orthotune.recipes.sft_data import load_texts

    config = (place := place_of(base)) / "config.json"
    if place.exists() and (not config.is_file() or "_class_name" in read_json(config)):
        raise ConfigError(
            f"--held-out {source}", got=f"--base {base}, which is no language model", needed="a folder of transformers",
            do="Leave --held-out out: the error of each layer is printed without it",
        )  # fmt: skip
    examples = load_texts(source)
    return replace(examples, rows=examples.rows[:HELD_OUT])


def _predictions(
    adapter: Path, lora: Path, base: str, examples: Examples, strength: float, kind: strengths.Kind | None,
    options: dict[str, Any],
) -> list[str]:  # fmt: skip
    """How far the predictions of a LoRA are from those of the adapter that it stands for, on held-out texts."""
    import torch

    from orthotune.metrics.drift import text_drift
    from orthotune.operations.load import load_adapter
    from orthotune.operations.other_methods import load_any
    from orthotune.text.causal_model import load_model, load_tokenizer
    from orthotune.text.rendered_rows import rendered_rows
    from orthotune.tuner.strength import set_scale

    rows = rendered_rows(load_tokenizer(base), examples, 512)
    exact = load_adapter(load_model(base, torch.float32), adapter, **options)[0]
    set_scale(exact, "default", strength, kind)
    close = load_any(load_model(base, torch.float32), lora)
    of_lora = text_drift(close, rows, exact)
    with close.disable_adapter():
        of_base = text_drift(close, rows, exact)
    return [
        f"on {of_lora.tokens:,} held-out tokens, divergence from the predictions of the adapter in nats per token:",
        f"  of the LoRA  {of_lora.kl:.3g}, same choice {of_lora.same_choice:.1%}",
        f"  of the base  {of_base.kl:.3g}, same choice {of_base.same_choice:.1%}",
    ]
