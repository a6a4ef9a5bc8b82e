"""The modules of a model are found without a look at its adapters."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from orthotune import OFTConfig, get_peft_model
from orthotune.layers.beside_adapters import beside_adapters
from tests.support.contract_cases import cases

CASES = {case.kind.name: case for case in cases("magnitude")}


class Shared(nn.Module):
    """One layer under two names, and a name that a container of adapters has, too."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 4)
        self.oft_R = nn.ModuleDict({"second": self.first, "third": nn.Linear(4, 4)})


@pytest.mark.parametrize("kind", ["linear_rank3", "attention", "encoder_layer", "mixtral_experts", "embedding"])
@pytest.mark.parametrize("every_name", [False, True])
def test_all_modules_but_those_of_adapters_in_the_order_of_torch(kind: str, every_name: bool) -> None:
    model = CASES[kind].fresh()
    own = [f".{name}." for name in ("oft_R", "oft_embedding_R", "oft_magnitude")]
    every = list(model.named_modules(remove_duplicate=not every_name))
    expected = [pair for pair in every if not any(part in f".{pair[0]}." for part in own)]
    assert list(beside_adapters(model, every_name=every_name)) == expected


def test_a_container_of_the_models_own_is_looked_into() -> None:
    model = Shared()
    assert list(beside_adapters(model)) == list(model.named_modules())
    adapted = get_peft_model(model, OFTConfig(oft_block_size=4, target_modules=["third"]))
    names = [name.removeprefix("base_model.model.") for name, _ in beside_adapters(adapted, every_name=True)]
    assert {"oft_R.second", "oft_R.third.base_layer"} < set(names) and "oft_R.third.oft_R" not in names


def test_further_adapters_cost_no_further_look() -> None:
    model = get_peft_model(nn.Sequential(nn.Linear(8, 8)), OFTConfig(r=2, target_modules=["0"]))
    before = len(list(beside_adapters(model)))
    for number in range(5):
        model.add_adapter(f"a{number}", OFTConfig(r=2, target_modules=["0"]))
    assert len(list(beside_adapters(model))) == before
    assert model(torch.zeros(1, 8)).shape == (1, 8)
