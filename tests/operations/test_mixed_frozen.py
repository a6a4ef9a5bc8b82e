"""Mixed batches over layers that run a frozen map of a file: each row is what its adapter alone gives it."""

from __future__ import annotations

import gc
import weakref
from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from orthotune import OFTConfig, load_adapter
from orthotune.errors import ConfigError
from orthotune.layers.base import OFTLayer
from orthotune.layers.mixed_batch import BASE
from orthotune.rotation.family import FamilyTransform
from tests.support.bases import layer, network, numbers, places
from tests.support.contract_cases import randomize
from tests.support.producers import Produced, produced

FROZEN = [
    case for case in produced() if any(not isinstance(m, FamilyTransform) for m in case.read().transforms.values())
]
NAMES = ["turned", BASE, "file", "file", "again", BASE, "file", "turned"]


def _model(case: Produced) -> Any:
    """The file twice, the second time at half its strength, and an adapter that turns."""
    options = {name: value for name, value in asdict(case.options).items() if value is not None}
    model, _ = load_adapter(network(case), case.adapter, "file", **options)
    model, _ = load_adapter(model, case.adapter, "again", **options)
    targets = [name for base, name in places(case).items() if base != "emb"]
    model.add_adapter("turned", OFTConfig(target_modules=targets, r=2, block_size_fallback="nearest"))
    randomize(model, 3, "turned")
    model.set_scale("again", 0.5)
    return model.double().eval()


def _input(base: str, module: nn.Module) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    if base == "emb":
        return torch.randint(module.weight.shape[0], (len(NAMES), 5), generator=draw)
    # 32 rows of tokens, whole groups of four for a BLAS, which rounds the last ones in another order
    shape = (module.weight.shape[1], 4, 8) if base == "conv" else (32, module.weight.shape[1])
    return torch.randn(len(NAMES), *shape, generator=draw, dtype=torch.float64)


@pytest.mark.filterwarnings("ignore:The adapter was trained with an older", "ignore:The block size does not divide")
@pytest.mark.parametrize("case", FROZEN, ids=str)
@torch.no_grad()
def test_rows_are_their_adapters_alone(case: Produced) -> None:
    model, io = _model(case), numbers(case)
    seen = 0
    for base, place in places(case).items():
        module, x = model.base_model.model.get_submodule(place), _input(base, layer(io, base))
        seen += module.frozen_map("file") is not None
        alone = {}
        with model.disable_adapter():
            alone[BASE] = module(x)
        for name in ("file", "again", "turned"):
            module.set_adapter([name])
            alone[name] = module(x)
        assert not torch.allclose(alone["file"], alone[BASE]) and not torch.allclose(alone["file"], alone["again"])
        found = module(x, adapter_names=NAMES)
        for row, name in enumerate(NAMES):
            # Fewer rows of a product, or a turned input instead of a turned weight: float64 sums in another order.
            torch.testing.assert_close(found[row], alone[name][row], rtol=1e-12, atol=1e-12)
        with model.disable_adapter():
            assert torch.equal(module(x, adapter_names=NAMES), alone[BASE])
    assert seen


def test_what_is_merged_is_refused_and_gradients_pass() -> None:
    case = FROZEN[0]
    model, io = _model(case), numbers(case)
    base, place = next(iter(places(case).items()))
    module, x = model.base_model.model.get_submodule(place), _input(base, layer(io, base))
    x.requires_grad_()
    weight = torch.randn(module(x).shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    (module(x, adapter_names=NAMES) * weight).sum().backward()
    mixed, total = x.grad.clone(), torch.zeros_like(x)
    for name in set(NAMES):
        x.grad = None
        module.set_adapter([] if name == BASE else [name])
        (module(x) * weight).sum().backward()
        rows = [row for row, other in enumerate(NAMES) if other == name]
        total[rows] = x.grad[rows]
    torch.testing.assert_close(mixed, total, rtol=1e-12, atol=1e-12)  # sums of float64 in another order
    module.set_adapter(["file"])
    model.merge_adapter(["file"])
    with pytest.raises(ConfigError, match="call `unmerge_adapter` first"):
        module(x, adapter_names=NAMES)


def test_a_deleted_map_leaves_no_weight_behind() -> None:
    model = _model(FROZEN[0])
    modules = [module for module in model.modules() if isinstance(module, OFTLayer)]
    held = [weakref.ref(module.frozen_map("file")) for module in modules]
    model.delete_adapter("file")
    gc.collect()
    assert held and all(reference() is None for reference in held)
    assert all("file" not in module.slots for module in modules)
