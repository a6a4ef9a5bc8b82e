"""``inspect``: the content of an adapter and its rotation angles, layer by layer."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from orthotune.errors import ConfigError
from orthotune.formats.adapter_state import AdapterState
from orthotune.formats.measure import measure
from orthotune.formats.peft.beyond_stock import beyond_stock
from orthotune.formats.peft.oft import PackedFolder
from orthotune.formats.registry import format_called
from orthotune.operations.adapter import Adapter, read_once
from orthotune.operations.diagnosis.diagnose import diagnose, diagnose_state
from orthotune.operations.other_methods import inspect_lora, other_method
from orthotune.rotation.family import FamilyTransform

WEIGHT_KEYS = ("energy_before", "energy_after", "spectrum_change", "weight_change")


def inspect(adapter: str | Path, *, base: str | Path | None = None, **options: Any) -> dict[str, Any]:
    """Blocks, sides, parameters, angles and orthogonality of an adapter, layer by layer, and warnings.

    Args:
        adapter: a folder as PEFT writes it (a LoRA, too), or one file of any readable format. It is read once.
        base: path or hub name of the base model, to measure its weights as well.
        options: facts that the file does not record, see :class:`~orthotune.formats.read_options.ReadOptions`.

    Returns:
        Plain values ready for JSON. Angles are in radians, errors are Frobenius norms; ``layers`` has one row for each
        rotation. Of a LoRA: rank, scale and norm of the change of each layer.

    Raises:
        AdapterFileError: the adapter is damaged, or does not belong to the base.
        ConfigError: a base is named for an adapter that does not rotate.

    Example:
        >>> import tempfile, torch
        >>> from safetensors.torch import save_file
        >>> path = f"{tempfile.mkdtemp()}/style.safetensors"
        >>> save_file({"lora_unet_blk_lin.oft_R.weight": torch.full((2, 1), 0.1)}, path)
        >>> facts = inspect(path)
        >>> facts["parameters"], facts["layers"][0]["block_size"], f"{facts['angle_max']:.2f}"
        (2, 2, '0.20')
    """
    if other_method(adapter) is not None:
        if base is not None:
            raise ConfigError(
                "--base with an adapter that does not rotate",
                do="Measure its weights with: orthotune evaluate energy ADAPTER --base BASE",
            )
        return inspect_lora(adapter)
    opened = read_once(adapter, **options)
    facts = _of_state(opened.state)
    if base is not None:
        _add_weights(facts, opened, str(base))
    return facts


def _of_state(state: AdapterState) -> dict[str, Any]:
    found = diagnose_state(state).record()
    more = {(row["layer"], row["part"]): row for row in found["layers"]}
    rows = [more.get((row.layer, row.part), {}) | asdict(row) for row in measure(state)]
    planes = [row["blocks"] * (row["block_size"] // 2) for row in rows]
    first = next(iter(state.layers.values()), None)
    family = [held for held in state.transforms.values() if isinstance(held, FamilyTransform)]
    trained = {held.spec.transform for held in family}
    scales = [*(layer.magnitude for layer in state.layers.values()), *(held.magnitude for held in family)]
    exact = first is None or first.spec.exact
    of_peft = isinstance(format_called(state.format), PackedFolder)
    return {
        "adapter": str(state.source),
        "base_model": state.config.get("base_model_name_or_path"),
        "peft_type": state.config.get("peft_type"),
        "peft_version": state.config.get("peft_version"),
        "format": state.format,
        # None: the current PEFT cannot load this format
        "beyond_stock_peft": beyond_stock(state.config) if of_peft else None,
        "transform": ", ".join(sorted(trained | ({"blocks"} if state.layers else set()))) or "none",
        "map": "exact" if first is None else first.spec.map,
        "terms": None if first is None or exact else first.spec.terms,
        "coft_eps": None if first is None else first.spec.eps,
        "scaled": first is not None and first.spec.scaled,
        "magnitudes": sum(scale is not None for scale in scales),
        "transforms": [name for name, held in state.transforms.items() if not isinstance(held, FamilyTransform)],
        "warnings": list(state.warnings),
        "other_tensors": {name: list(tensor.shape) for name, tensor in state.other.items()},
        "parameters": state.parameters,
        "angle_max": max(row["angle_max"] for row in rows),
        "angle_mean": sum(row["angle_mean"] * n for row, n in zip(rows, planes, strict=True)) / max(sum(planes), 1),
        "orthogonality_error": max(row["orthogonality_error"] for row in rows),
        "angle_top": found["angle_top"],
        "advice": found["advice"],
        "layers": rows,
    }


def _add_weights(facts: dict[str, Any], adapter: Adapter, base: str) -> None:
    """Add energy, spectrum and distance of the base's weights to the rows of the layers."""
    from orthotune.operations.base_model import load_base  # imports transformers and PEFT: only with a base
    from orthotune.operations.load import apply_adapter

    model, report = apply_adapter(load_base(base, "float32").model, adapter, "inspected")
    found = diagnose(model, "inspected").record()["layers"]
    measured = {(row["layer"], row["part"]): row for row in found}
    for row in facts["layers"]:
        module = report.matched.get(row["layer"], row["layer"])
        held = measured.get((module, row["part"]), {})
        row |= {key: held[key] for key in WEIGHT_KEYS if key in held}
