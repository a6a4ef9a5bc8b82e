"""``identify``: the format and the content of an adapter file, without its base."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from safetensors import safe_open

from orthotune.formats.adapter_state import AdapterState
from orthotune.formats.convert import plan
from orthotune.formats.kinds import DIFF, kind_of
from orthotune.formats.measure import RotationMeasure, measure
from orthotune.formats.registry import format_called, targets
from orthotune.operations.adapter import read_once
from orthotune.operations.lora_file import DOWN, TARGETS, LoraFile, lora_at

#: fields of a header that name the producer
_PRODUCER_FIELDS = (
    "ss_network_module",
    "ss_sd_scripts_commit_hash",
    "ot_branch",
    "ot_revision",
    "modelspec.implementation",
)


@dataclass(frozen=True)
class Identity:
    """The result of :func:`identify`.

    Attributes:
        producer: the program that probably wrote the file.
        said: fields of the file that name its producer.
        kinds: kind of layer, as in the conversion table -> number of layers.
        block_sizes: size -> number of stored blocks.
        orthogonality_error: the largest Frobenius norm of ``R Rᵀ - I`` of a block; None for a LoRA.
        coft_eps: COFT radius, in the units of the producer; None if the file records none.
        dtypes: dtype -> number of tensors.
        conversions: target -> ``lossless``, ``approximate`` or ``impossible``.
        needs_base: targets whose conversion needs the shapes of the base.
    """

    path: str
    format: str
    producer: str
    said: dict[str, str]
    layers: int
    kinds: dict[str, int]
    sides: list[str]
    block_sizes: dict[int, int]
    blocks: int
    shared: int
    parameters: int
    orthogonality_error: float | None
    coft_eps: float | None
    dtypes: dict[str, int]
    conversions: dict[str, str]
    needs_base: list[str]
    warnings: list[str]


def identify(adapter: str | Path, **options: Any) -> Identity:
    """Identify an adapter file: format, probable producer, side, blocks, and the formats it can be converted to.

    Args:
        adapter: a file, or a folder with ``adapter_config.json``. It is read once.
        options: facts that the file does not record, see :class:`~orthotune.formats.read_options.ReadOptions`.

    Returns:
        The facts in the file; no base is opened.

    Raises:
        AdapterFileError: the format is unknown, or the file is damaged.

    Example:
        >>> import tempfile, torch
        >>> from safetensors.torch import save_file
        >>> path = f"{tempfile.mkdtemp()}/style.safetensors"
        >>> lin = {"oft_blocks": torch.zeros(2, 3, 3), "alpha": torch.tensor(0.1)}
        >>> save_file({f"oft_unet_blk_lin.{name}": tensor for name, tensor in lin.items()}, path)
        >>> found = identify(path)
        >>> found.format, found.sides
        ('kohya-oft', ['out'])
    """
    if (lora := lora_at(adapter)) is not None:
        return _of_lora(adapter, lora)
    opened = read_once(adapter, **options)
    state, format = opened.state, format_called(opened.state.format)
    rows = list(measure(state))
    sizes: Counter[int] = Counter()
    for row in rows:
        sizes[row.block_size] += row.blocks
    plans = {target: plan(state, target) for target in targets()}
    radii = {layer.spec.eps for layer in state.layers.values() if layer.spec.eps is not None}
    return Identity(
        path=str(adapter),
        format=state.format,
        producer=format.producer if format is not None else "unknown",
        said=_named_producer(state),
        layers=len(state.layers) + len(state.transforms),
        kinds=dict(Counter(map(kind_of, [*state.layers.values(), *state.transforms.values()])).most_common()),
        sides=sorted({row.side for row in rows}),
        block_sizes=dict(sorted(sizes.items())),
        blocks=sum(sizes.values()),
        shared=sum(layer.spec.shared for layer in state.layers.values()),
        parameters=state.parameters,
        orthogonality_error=_worst(rows),
        coft_eps=max(radii) if radii else float(state.config.get("eps") or 0) if state.config.get("coft") else None,
        dtypes=_dtypes(opened.file.path),
        conversions={**{target: str(found.verdict) for target, found in plans.items()}, DIFF: "lossless"},
        needs_base=[t for t, found in plans.items() if found.needs_base and found.verdict != "impossible"] + [DIFF],
        warnings=list(state.warnings),
    )


def _of_lora(adapter: str | Path, lora: LoraFile) -> Identity:
    ranks = Counter(lora.shapes[name + DOWN][0] for name in lora.layers)
    return Identity(
        path=str(adapter),
        format=lora.format,
        producer="diffusers, save_lora_weights" if lora.format == "diffusers-lora" else "PEFT, LoRA",
        said={"base": lora.base} if lora.base else {},
        layers=len(lora.layers),
        kinds={f"LoRA of rank {rank}": count for rank, count in ranks.most_common()},
        sides=[],
        block_sizes={},
        blocks=0,
        shared=0,
        parameters=sum(prod(shape) for shape in lora.shapes.values()),
        orthogonality_error=None,
        coft_eps=None,
        dtypes=dict(Counter(lora.dtypes.values()).most_common()),
        conversions={target: "lossless" if target in TARGETS else "impossible" for target in targets()},
        needs_base=list(TARGETS),
        warnings=[],
    )


def _worst(rows: list[RotationMeasure]) -> float:
    return max((row.orthogonality_error for row in rows), default=0.0)


def _named_producer(state: AdapterState) -> dict[str, str]:
    found = {name: str(state.metadata[name]) for name in _PRODUCER_FIELDS if name in state.metadata}
    version = state.config.get("peft_version")
    return found | ({"peft_version": str(version)} if version else {})


def _dtypes(path: Path) -> dict[str, int]:
    """dtypes of a safetensors file; empty for a pickle."""
    if path.suffix != ".safetensors":
        return {}
    with safe_open(path, framework="pt") as file:
        return dict(Counter(file.get_slice(name).get_dtype() for name in file.keys()).most_common())  # noqa: SIM118
