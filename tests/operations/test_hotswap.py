"""Other numbers in the place of an adapter's, without a new compilation."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from orthotune import OFTConfig, OrthotuneError, get_peft_model
from orthotune.formats.adapter_state import AdapterState, LayerState
from orthotune.formats.convert import convert
from orthotune.formats.writers import write_adapter
from orthotune.operations.hotswap import hotswap_adapter
from orthotune.operations.load import load_adapter
from tests.support.contract_cases import randomize


def _net(seed: int = 1, **fields: Any) -> Any:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(24, 12), nn.Tanh(), nn.Linear(12, 24)).double()
    config = OFTConfig(**{"oft_block_size": 12, "target_modules": ["0", "2"], "use_cayley_neumann": False} | fields)
    return randomize(get_peft_model(net, config), seed).eval()


@torch.no_grad()
def test_values_are_swapped_and_nothing_is_compiled_again(tmp_path: Path) -> None:
    model, other, x = _net(), _net(2), torch.randn(5, 24, dtype=torch.float64)
    other.save_pretrained(tmp_path)
    compiled: list[Any] = []

    def counting(graph: Any, inputs: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    torch._dynamo.reset()
    fast = torch.compile(model, backend=counting)
    before, graphs = fast(x), len(compiled)
    hotswap_adapter(model, tmp_path)
    after = fast(x)
    assert len(compiled) == graphs > 0
    # float64: the compiled graph adds in another order
    torch.testing.assert_close(after, other(x), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(after, before)


@pytest.mark.parametrize(
    "fields", [{"oft_block_size": 4}, {"oft_block_size": 6, "scaled": True}, {"block_share": True}]
)
@torch.no_grad()
def test_smaller_blocks_are_padded_exactly(tmp_path: Path, fields: dict[str, Any]) -> None:
    model, other, x = _net(), _net(2, **fields), torch.randn(5, 24, dtype=torch.float64)
    other.save_pretrained(tmp_path)
    hotswap_adapter(model, tmp_path)
    # the rotation of the large block is solved for as a whole
    torch.testing.assert_close(model(x), other(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"oft_block_size": 4, "coft": True}, "layer '0'.*COFT eps"),
        ({"side": "out"}, "layer '0'.*side out.*Needed: side in"),
        ({"use_cayley_neumann": True}, "map current series with 5 terms"),
        ({"magnitude": True}, "magnitude True"),
        ({"target_modules": ["0"]}, "only in the model: 2"),
    ],
)
def test_what_differs_otherwise_is_refused_and_nothing_changes(
    tmp_path: Path, fields: dict[str, Any], words: str
) -> None:
    model = _net()
    before = copy.deepcopy(model.state_dict())
    _net(2, **fields).save_pretrained(tmp_path)
    with pytest.raises(OrthotuneError, match=words):
        hotswap_adapter(model, tmp_path)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_larger_blocks_are_refused(tmp_path: Path) -> None:
    _net(2).save_pretrained(tmp_path)
    with pytest.raises(OrthotuneError, match="blocks 2 x 12. Needed: blocks 6 x 4"):
        hotswap_adapter(_net(oft_block_size=4), tmp_path)


@torch.no_grad()
def test_the_basis_of_a_subspace_is_swapped_with_its_rotation(tmp_path: Path) -> None:
    fields = {"transform": "subspace", "r": 3, "oft_block_size": 0}
    model, other, x = _net(**fields), _net(2, **fields), torch.randn(5, 24, dtype=torch.float64)
    for layer in (other.base_model.model[0], other.base_model.model[2]):
        layer.rotations("default")[""].basis[1].neg_()  # as another library may decompose the weight
    other.save_pretrained(tmp_path)
    model(x)
    hotswap_adapter(model, tmp_path)
    torch.testing.assert_close(model(x), other(x), rtol=1e-12, atol=1e-12)  # the same operations


def test_planes_in_other_groups_are_refused(tmp_path: Path) -> None:
    fields = {"transform": "planes", "variant": "road_1", "side": "out"}
    _net(2, **fields, oft_block_size=4).save_pretrained(tmp_path)
    with pytest.raises(OrthotuneError, match="block_size 4. Needed: block_size 12"):
        hotswap_adapter(_net(**fields), tmp_path)


@pytest.mark.parametrize(
    "sizes",
    [{"block_size_pattern": {"0": 4}}, {"oft_block_size": 10, "block_size_fallback": "nearest"},
     {"oft_block_size": 0, "r": 3, "rank_pattern": {"2": 2}}],
    ids=str,
)  # fmt: skip
@torch.no_grad()
def test_groups_of_planes_are_read_for_each_layer(tmp_path: Path, sizes: dict[str, Any]) -> None:
    fields = {"transform": "planes", "side": "out"} | sizes
    model, other, x = _net(**fields), _net(2, **fields), torch.randn(5, 24, dtype=torch.float64)
    other.save_pretrained(tmp_path)
    hotswap_adapter(model, tmp_path)
    torch.testing.assert_close(model(x), other(x), rtol=1e-12, atol=1e-12)  # the same operations


@torch.no_grad()
def test_a_file_that_reverses_convolutions_is_swapped_as_it_is_loaded(tmp_path: Path) -> None:
    v = torch.randn(2, 153, generator=torch.Generator().manual_seed(1)) * 0.1  # two blocks of 18 for 4 channels of 3x3
    state = AdapterState({"lora_unet_conv": LayerState({"": v})}, prefixes={"lora_unet_conv": "lora_unet_conv"})
    ready, _ = convert(state, "onetrainer", {"lora_unet_conv": (8, 4, 3, 3)}, approximate=True)
    path = write_adapter(ready, tmp_path / "style.safetensors", "onetrainer")
    net = nn.Module()
    net.conv = nn.Conv2d(4, 8, 3)
    model, _ = load_adapter(net, path)
    layer = model.get_submodule("conv") if hasattr(model, "conv") else model.base_model.model.conv
    before = layer.rotations("default")[""].weight.clone()
    hotswap_adapter(model, path)
    assert torch.equal(layer.rotations("default")[""].weight, before) and before.any()
