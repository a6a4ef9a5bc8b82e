"""Tokens per second of one batch under several adapters, beside PEFT's LoRA and the frozen model."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from harness import llama, machine
from harness.cells import Cell
from harness.contenders import STIR
from orthotune.files.tables import write_table
from orthotune.tuner.config import OFTConfig

#: different adapters in a batch
COUNTS = (1, 4, 16, 64)
ROWS = 64
BLOCK, RANK = 32, 16
#: tokens of a generation in one measurement of decoding
DECODED = 16


@dataclass(frozen=True)
class Throughput:
    """One contender under one number of adapters.

    Args:
        contender: ``frozen``, ``lora`` or ``orthotune``.
        adapters: different ones in the batch; rows take turns.
        rows, tokens: of the batch, and tokens of each row; 1 is decoding, :data:`DECODED` steps of one generation.
        tokens_per_second: median over the repetitions.
        time_ratio: median of its time over the frozen model's in the same repetition.
        device, machine, dtype, hidden, layers, repetitions, versions, commit: what it was measured on.
    """

    contender: str
    adapters: int
    rows: int
    tokens: int
    tokens_per_second: float
    time_ratio: float
    device: str
    machine: str
    dtype: str
    hidden: int
    layers: int
    repetitions: int
    versions: str
    commit: str


def measure(
    hidden: int = 1024,
    layers: int = 2,
    tokens: Sequence[int] = (1, 32),
    counts: Sequence[int] = COUNTS,
    rows: int = ROWS,
    repetitions: int = 20,
    dtype: str = "bfloat16",
) -> list[Throughput]:
    """The table: every number of adapters, decoding and longer rows; on the GPU if there is one.

    Contenders alternate, and a time is divided by that of the frozen model in the same repetition.

    Example:
        >>> len(measure(64, 1, (1,), (1, 2), 2, 2, "float32"))
        6
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found: list[Throughput] = []
    for count in counts:
        models = {
            name: _adapted(name, count, hidden, layers, dtype, device) for name in ("frozen", "lora", "orthotune")
        }
        names = [f"a{row % count}" for row in range(rows)]
        for length in tokens:
            x = torch.randn(rows, length, hidden, device=device, dtype=getattr(torch, dtype))
            run = _decoding if length == 1 else _call
            steps = {name: run(model, x, None if name == "frozen" else names) for name, model in models.items()}
            seconds = _alternate(steps, repetitions, device)
            counted = rows * (DECODED if length == 1 else length)
            for name, times in seconds.items():
                ratios = [own / floor for own, floor in zip(times, seconds["frozen"], strict=True)]
                found.append(
                    Throughput(
                        name,
                        count,
                        rows,
                        length,
                        counted / median(times),
                        median(ratios),
                        device.type,
                        machine.device_name(device),
                        dtype,
                        hidden,
                        layers,
                        repetitions,
                        machine.versions(),
                        machine.commit(),
                    )
                )
    return found


def _alternate(steps: dict[str, Callable[[], None]], repetitions: int, device: torch.device) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {name: [] for name in steps}
    with torch.no_grad():
        for number in range(repetitions + 2):
            for name, step in steps.items():
                _wait(device)
                began = time.perf_counter()
                step()
                _wait(device)
                if number >= 2:  # two rounds to warm up
                    found[name].append(time.perf_counter() - began)
    return found


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _call(model: nn.Module, x: Tensor, names: list[str] | None) -> Callable[[], None]:
    more: dict[str, Any] = {} if names is None else {"adapter_names": names}

    def step() -> None:
        model(inputs_embeds=x, use_cache=False, **more)

    return step


def _decoding(model: Any, x: Tensor, names: list[str] | None) -> Callable[[], None]:
    """What ``generate`` does: the adapters of the rows are told once, then token follows token."""
    inner = model if names is None else model.base_model

    def step() -> None:
        with nullcontext() if names is None else model._enable_peft_forward_hooks(adapter_names=names):
            for _ in range(DECODED):
                inner(inputs_embeds=x, use_cache=False)

    return step


def _adapted(name: str, count: int, hidden: int, layers: int, dtype: str, device: torch.device) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base, _, _ = llama.build(Cell(hidden=hidden, tokens=64, layers=layers))
        base = nn.Module.to(base, device=device, dtype=getattr(torch, dtype)).requires_grad_(False).eval()
        if name == "frozen":
            return base
        options: dict[str, Any] = {"target_modules": llama.PROJECTIONS}
        oft = OFTConfig(oft_block_size=BLOCK, use_cayley_neumann=False, **options)
        config = LoraConfig(r=RANK, lora_alpha=RANK, **options) if name == "lora" else oft
        model: Any = get_peft_model(base, config, "a0")
        for number in range(1, count):
            model.add_adapter(f"a{number}", config)
        for key, parameter in model.named_parameters():
            if "lora_" in key or "oft_" in key:
                parameter.data.add_(torch.randn(parameter.shape).to(parameter), alpha=STIR)
    adapted: nn.Module = model.eval()
    return adapted


def write(rows: Sequence[Throughput], path: Path) -> None:
    """The rows as CSV, whole or not at all."""
    write_table(path, map(asdict, rows), [field.name for field in fields(Throughput)])
