"""PEFT's own numbers: its rotations, its merged weights and its outputs, from the files that it wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import conv2d, linear

from orthotune.kernels.rotate import rotate, rotate_stack
from orthotune.rotation.packing import block_size_of
from orthotune.rotation.spec import Map, RotationSpec

FIXTURES = Path(__file__).parents[1] / "fixtures"
CASES = sorted(p for version in ("0.17.1", "0.21.2") for p in (FIXTURES / f"peft-{version}-oft").iterdir())
#: float32 on both sides, sums of up to 72 products of numbers near 1
ROUNDING = 5e-6


def _named(path: Path) -> str:
    return f"{path.parent.name}-{path.name}"


def _blocks(case: Path, layer: str) -> Tensor:
    config = json.loads((case / "adapter_config.json").read_text())
    (v,) = (v for k, v in load_file(case / "adapter_model.safetensors").items() if k.endswith(f"{layer}.oft_R.weight"))
    series: Map = "neumann_legacy" if "0.17.1" in str(case.parent) else "neumann"
    return RotationSpec(
        block_size_of(v.shape[-1]),
        map=series if config["use_cayley_neumann"] else "exact",
        terms=config["num_cayley_neumann_terms"],
        eps=config["eps"] if config["coft"] else None,
    ).rotation(v)


def _layers(numbers: dict[str, Tensor]) -> list[str]:
    return [name for name in ("lin", "conv") if f"{name}.rotation" in numbers]


def test_all_cases_are_here() -> None:
    names = {_named(case).replace("-oft", "") for case in CASES}
    wanted = {"exact", "coft", "adjusted_bs5", *(f"neumann{n}" for n in (1, 2, 3, 5, 6))}
    assert {f"peft-{v}-{name}" for v in ("0.17.1", "0.21.2") for name in wanted} <= names
    assert {"peft-0.21.2-neumann4", "peft-0.21.2-block_share"} <= names


@pytest.mark.parametrize("case", CASES, ids=_named)
def test_rotation_weight_and_output(case: Path) -> None:
    numbers = load_file(case / "io.safetensors")
    for layer in _layers(numbers):
        W, R = numbers[f"{layer}.weight"].flatten(1), _blocks(case, layer)
        dense = numbers[f"{layer}.rotation"]
        torch.testing.assert_close(rotate(torch.eye(len(dense)), R), dense, rtol=0, atol=ROUNDING)

        merged = rotate_stack(W, R.mT).view(numbers[f"{layer}.weight"].shape)
        torch.testing.assert_close(merged, numbers[f"{layer}.weight_merged"], rtol=0, atol=ROUNDING)

        x, bias = numbers[f"{layer}.x"], numbers[f"{layer}.bias"]
        y = linear(rotate(x, R), W, bias) if layer == "lin" else conv2d(x, merged, bias, padding=1)
        torch.testing.assert_close(y, numbers[f"{layer}.y_merged"], rtol=0, atol=4 * ROUNDING)
        if layer == "lin":  # PEFT's un-merged convolution is another map, see the formats
            torch.testing.assert_close(y, numbers["lin.y"], rtol=0, atol=4 * ROUNDING)


@pytest.mark.parametrize("case", [c for c in CASES if c.name not in ("neumann1", "neumann2")], ids=_named)
def test_the_other_direction_or_series_would_be_seen(case: Path) -> None:
    numbers = load_file(case / "io.safetensors")
    dense = numbers["lin.rotation"]
    R = _blocks(case, "lin")
    assert (rotate(torch.eye(len(dense)), R.mT) - dense).abs().max() > 100 * ROUNDING


@pytest.mark.parametrize("version", ["0.17.1", "0.21.2"])
def test_the_fixture_of_coft_needs_its_projection(version: str) -> None:
    case = FIXTURES / f"peft-{version}-oft" / "coft"
    (v,) = (v for k, v in load_file(case / "adapter_model.safetensors").items() if "lin" in k)
    dense = load_file(case / "io.safetensors")["lin.rotation"]
    free = rotate(torch.eye(len(dense)), RotationSpec(block_size_of(v.shape[-1])).rotation(v))
    assert (free - dense).abs().max() > 100 * ROUNDING
