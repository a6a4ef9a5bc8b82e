"""``orthotune bench``: adapted models beside the frozen one, in time and in bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

BLOCKS = (8, 16, 32, 64, 128, 256)
SELECTIONS = "targets, growth, blocks, grid, others, fused, compiled, unet, gpu or smoke"


def bench(
    selection: str = typer.Argument(
        None,
        help=f"What to measure: {SELECTIONS}; or adapters: tokens per second of mixed batches. Default: targets.",
    ),
    threads: int = typer.Option(None, min=1, help="CPU threads. Default: torch's own number."),
    repetitions: int = typer.Option(
        40, min=1, help="Repetitions of each measurement; after two minutes, 5 are enough."
    ),
    out: Path = typer.Option(
        Path("runs/bench"), "--out", "--output", "-o", help="Folder for SELECTION-DEVICE.csv and .png."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print the rows as JSON instead of tables."),
    adapters: str = typer.Option(
        None, "--adapters", help="Only for `bench adapters`: adapters in one batch. Default: 1,4,16,64."
    ),
    hidden: int = typer.Option(
        None, "--hidden", min=32, help="Only for `bench adapters`: width of the model. Default: 1024."
    ),
    dtype: str = typer.Option(
        None, "--dtype", help="Of the models in place of each cell's own, as float32 on a CPU that has no bfloat16."
    ),
    predict: str = typer.Option(
        None,
        "--predict",
        help="Print what steps of published models, or of the cells of a selection, should cost on a GPU, as h100, "
        "a100 or 4090; measure nothing.",
    ),
    explain: bool = typer.Option(
        False, "--explain", help="Print kernels, the path of each layer, what is cached, and why; measure nothing."
    ),
) -> None:
    """Time training, evaluation and decoding against the frozen model, PEFT's LoRA and PEFT's OFT, in one process.

    Figures are ratios to the step of the frozen model in the same repetition. Runs on the GPU if there is one. The
    benchmark is part of a clone of the repository, not of the wheel; --explain works everywhere.

    Examples:

      orthotune bench targets --threads 2

      orthotune bench --explain

      orthotune bench --predict h100

      orthotune bench targets --predict 4090
    """
    if explain:
        _explain(as_json)
        return
    harness = _harness(selection or "targets")
    if predict is not None:
        if selection == "adapters":
            raise typer.BadParameter("--predict has no prediction for `orthotune bench adapters`; leave adapters out")
        harness.run_prediction(predict.lower(), selection, as_json)
        return
    if selection == "adapters":
        harness.run_adapters(out, repetitions, as_json, threads, adapters, hidden)
        return
    if adapters is not None or hidden is not None:
        raise typer.BadParameter("--adapters and --hidden are for `orthotune bench adapters`")
    harness.run_selection(selection or "targets", out, repetitions, as_json, threads, dtype)


def _harness(selection: str) -> Any:
    """``benchmarks/harness/verb.py`` of the clone that orthotune is installed from.

    Raises:
        OrthotuneError: orthotune is installed from a wheel, which does not contain the benchmark.
    """
    import importlib.util
    import sys

    from orthotune.errors import OrthotuneError

    found = importlib.util.find_spec("orthotune")
    # Only the folder beside the installed package counts: a `benchmarks` folder of the working directory is foreign
    # code.
    folder = Path(str(found and found.origin)).parents[2] / "benchmarks"
    if not (folder / "harness" / "verb.py").is_file():
        raise OrthotuneError(
            f"orthotune bench {selection}",
            got="no benchmark beside the installed package; the wheel does not contain it",
            needed="a clone of orthotune's repository that is installed with make install",
            do="Run make bench in the clone, or orthotune bench from its .venv; orthotune bench --explain works here",
        )
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    return importlib.import_module("harness.verb")


def _explain(as_json: bool) -> None:
    rows = paths()
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        sizes = ", ".join(map(str, row["block_sizes"]))
        typer.echo(
            f"{row['operation']:<16} {row['device']:<5} {row['dtype']:<9} b={sizes:<27} {row['path']:<8} {row['why']}"
        )
    for name, lines in layers().items():
        typer.echo(f"\n{name}\n  " + lines.replace("\n", "\n  "))


def layers() -> dict[str, str]:
    """What each adapted layer of a small Llama block does in decoding, after one token: plan, cache, shared input."""
    import torch
    from transformers import LlamaConfig, LlamaModel

    from orthotune import OFTConfig, get_peft_model
    from orthotune.layers.base import OFTLayer
    from orthotune.layers.plan import explain

    shape = LlamaConfig(
        vocab_size=8, hidden_size=128, intermediate_size=384, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=8,
    )  # fmt: skip
    projections = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = OFTConfig(oft_block_size=32, use_cayley_neumann=False, target_modules=projections)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = get_peft_model(LlamaModel(shape).to(torch.bfloat16), config).eval()
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.01)  # the plan skips a rotation that is the identity
        model(inputs_embeds=torch.randn(1, 1, 128, dtype=torch.bfloat16), use_cache=False)
    return {
        name.removeprefix("base_model.model."): explain(module)
        for name, module in model.named_modules()
        if isinstance(module, OFTLayer)
    }


def paths() -> list[dict[str, Any]]:
    """The path that each operation takes on each device and dtype; block sizes with the same path share a row.

    Example:
        >>> paths()[0]["path"]
        'torch'
    """
    import torch

    from orthotune.kernels.choose import Operation, choose

    operations: tuple[Operation, ...] = ("from_parameters", "rotate")
    rows: list[dict[str, Any]] = []
    for operation in operations:
        for device in ("cpu", "cuda", "xpu", "mps"):
            for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
                if operation == "from_parameters" and dtype in (torch.bfloat16, torch.float16):
                    continue  # rotations are computed in float32 or better
                for size in BLOCKS:
                    chosen = choose(operation, device, dtype, size)
                    why = chosen.why.replace(f", blocks of {size}", "")
                    key = {"operation": operation, "device": device, "dtype": str(dtype).removeprefix("torch."),
                           "path": chosen.path, "why": why}  # fmt: skip
                    last = rows[-1] if rows else {}
                    if all(last.get(name) == value for name, value in key.items()):
                        last["block_sizes"].append(size)
                    else:
                        rows.append({**key, "block_sizes": [size]})
    return rows
