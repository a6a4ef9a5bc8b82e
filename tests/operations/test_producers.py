"""Every fixture on a model of its names: the layer gives what the producing program gave, run, merged and unmerged."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import Tensor

from orthotune import load_adapter
from orthotune.layers.base import OFTLayer
from tests.support.bases import network, numbers, places
from tests.support.producers import Produced, produced, turns_bias

#: float32 on both sides, outputs of about 5 that sum up to 72 products
CLOSE: dict[str, float] = {"rtol": 0, "atol": 1e-5}


def _options(case: Produced) -> dict[str, Any]:
    return {name: value for name, value in asdict(case.options).items() if value is not None}


def _expected(case: Produced, io: dict[str, Tensor], base: str) -> Tensor:
    """The output of the merged weight, where the program's own forward turned other things, too."""
    if turns_bias(case):
        weight = case.read().transform(next(n for n in _layers(case) if base in n)).apply(io[f"{base}.weight"])
        bias = io[f"{base}.bias"]
        turn = torch.nn.functional.linear if base == "lin" else torch.nn.functional.conv2d
        return turn(io[f"{base}.x"], weight, bias, **({} if base == "lin" else {"padding": 1}))
    # PEFT since 0.16 folds overlapping patches of convolutions: only what it merges is the adapter's meaning
    return io.get(f"{base}.y_merged", io[f"{base}.y"])


def _layers(case: Produced) -> list[str]:
    state = case.read()
    return [*state.layers, *state.transforms]


@pytest.mark.filterwarnings("ignore:The adapter was trained with an older", "ignore:The block size does not divide")
@pytest.mark.parametrize("case", produced(), ids=str)
def test_it_loads_runs_and_merges(case: Produced) -> None:
    io, net = numbers(case), network(case)
    model, report = load_adapter(net, case.adapter, **_options(case))
    assert sorted(report.matched.values()) == sorted(places(case).values())
    assert not report.unmatched and not report.untouched
    assert str(report).startswith(report.format)
    inner = model.eval().base_model.model
    for base, name in places(case).items():
        layer, x = inner.get_submodule(name), io[f"{base}.x"]
        assert isinstance(layer, OFTLayer)
        expected = _expected(case, io, base)
        output = layer(x)
        torch.testing.assert_close(output, expected, **CLOSE)
        frozen = layer.frozen_map("default") is not None
        assert (name in report.frozen) is frozen
        assert any(p.requires_grad for p in layer.parameters()) is not frozen
        before = layer.get_base_layer().weight
        layer.merge(safe_merge=True)
        torch.testing.assert_close(layer(x), expected, **CLOSE)
        if f"{base}.weight_merged" in io:
            torch.testing.assert_close(layer.get_base_layer().weight, io[f"{base}.weight_merged"], **CLOSE)
        layer.unmerge()
        assert layer.get_base_layer().weight is before
        assert torch.equal(before, io[f"{base}.weight"])
        assert torch.equal(layer(x), output)
        with model.disable_adapter():
            assert torch.equal(layer(x), layer.get_base_layer()(x))
