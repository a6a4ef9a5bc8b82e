"""Other numbers in the place of an adapter's, without a new compilation."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from orthotune import OFTConfig, OrthotuneError, get_peft_model
from orthotune.operations.hotswap import hotswap_adapter
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
