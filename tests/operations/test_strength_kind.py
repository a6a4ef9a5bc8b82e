"""Strengths other than 1 do what the file's own tool does with them, until another kind is named."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch

from orthotune import load_adapter
from orthotune.errors import ConfigError
from orthotune.layers.base import OFTLayer
from tests.support.bases import network, numbers, places
from tests.support.producers import Produced, produced

#: float32 on both sides, weights of about 1 that sum up to 8 products
CLOSE = {"rtol": 0, "atol": 2e-6}


@pytest.mark.filterwarnings("ignore:The adapter was trained with an older", "ignore:The block size does not divide")
@pytest.mark.parametrize("case", produced(), ids=str)
@torch.no_grad()
def test_half_a_strength_is_that_of_the_home_tool(case: Produced) -> None:
    options = {name: value for name, value in asdict(case.options).items() if value is not None}
    io, state = numbers(case), case.read()
    model, report = load_adapter(network(case), case.adapter, **options)
    inner = model.eval().base_model.model
    kinds = set()
    for layer, base in ((n, b) for n in state.layers for b in places(case) if b in n):
        module = inner.get_submodule(places(case)[base])
        assert isinstance(module, OFTLayer)
        if module.frozen_map("default") is not None:
            continue
        held, W = state.layers[layer], io[f"{base}.weight"]
        kind = held.blend if held.blend in ("linear", "rotation") else "geodesic"
        kinds.add(kind)
        assert module.strength("default").kind == kind
        if kind == "linear" and held.magnitude is not None:
            with pytest.raises(ConfigError, match="Use kind='geodesic'"):
                module.set_scale("default", 0.3)
            continue
        module.set_scale("default", 0.3)
        if kind != "geodesic":
            wanted = held.for_weight(W.shape).apply(W, 0.3)
            torch.testing.assert_close(module.get_delta_weight("default") + W, wanted, **CLOSE)
        module.set_scale("default", 0.3, "geodesic")  # the user's word goes before the file's
        assert module.strength("default").kind == "geodesic"
        R = next(iter(module.rotations("default").values()))()
        error = (R @ R.mT - torch.eye(R.shape[-1])).norm(dim=(-2, -1)).max()
        if held.spec.exact:
            assert error < 5e-6  # the bound of every exact map in float32
    if kinds:
        assert report.strength in kinds
        assert ("Strengths other" in str(report)) == (kinds != {"geodesic"})


def test_every_kind_was_seen() -> None:
    found = {held.blend for case in produced() for held in case.read().layers.values()}
    assert found >= {"linear", "rotation", "none"}
