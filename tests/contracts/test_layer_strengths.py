"""The gradient of a loss with respect to the strength of each layer, against central differences."""

from __future__ import annotations

import peft
import pytest
import torch
from torch import nn

from orthotune import OFTConfig, get_peft_model
from orthotune.errors import ConfigError
from orthotune.layers.base import OFTLayer
from orthotune.runs.layer_strengths import LayerStrengths, layer_strengths
from tests.support.contract_cases import Case, cases

EVERY = cases("exact", "shared", "magnitude", "scaled", "coft", dtypes=(torch.float64,))
STEP = 1e-4


def check(model: nn.Module, layers: LayerStrengths, inputs: tuple[torch.Tensor, ...], start: float) -> None:
    """Gradients at strengths that differ from layer to layer are those of central differences."""
    with torch.no_grad():
        generator = torch.Generator().manual_seed(3)
        weights = torch.randn(model(*inputs).shape, generator=generator, dtype=torch.float64)

    def loss(strengths: dict[str, float]) -> torch.Tensor:
        layers.set(strengths)
        return (model(*inputs).double() * weights).sum() + model(*inputs).double().square().sum()

    at = {name: start + 0.3 * index for index, name in enumerate(layers.names)}
    loss(at).backward()
    found = layers.gradients()
    assert set(found) == set(layers.names)
    assert all(parameter.grad is None for parameter in model.parameters() if parameter.requires_grad)
    for name in layers.names:
        with torch.no_grad():
            above, below = (loss({**at, name: at[name] + sign * STEP}).item() for sign in (1, -1))
        wanted = (above - below) / (2 * STEP)
        # The step's square times a third derivative of the size of the loss; rotations of float64 blocks.
        assert found[name] == pytest.approx(wanted, rel=1e-5, abs=1e-5 * (1 + abs(above)))


@pytest.mark.parametrize("case", EVERY, ids=str)
def test_every_kind_of_layer(case: Case) -> None:
    model = case.trained()
    if any(layer.frozen_map("default") for layer in model.modules() if isinstance(layer, OFTLayer)):
        pytest.fail("a contract case with a frozen map")
    check(model, layer_strengths(model), case.inputs(), 0.55)


def test_lora_and_full_finetuning() -> None:
    torch.manual_seed(0)
    inputs = (torch.randn(5, 12, dtype=torch.float64),)
    base = nn.Sequential(nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 6)).double()
    config = peft.LoraConfig(r=2, target_modules=["0", "2"], init_lora_weights=False)
    lora = get_peft_model(nn.Sequential(nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 6)), config).double()
    check(lora, layer_strengths(lora), inputs, 0.4)
    full = nn.Sequential(nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 6)).double()
    layers = layer_strengths(full, base=base)
    assert layers.names == ("0", "2")
    check(full, layers, inputs, 0.4)
    layers.set(dict.fromkeys(layers.names, 0.0))
    assert all(torch.equal(a, b) for a, b in zip(full.parameters(), base.parameters(), strict=True))


def test_what_has_no_strength_is_refused_by_name() -> None:
    def adapted(**options: object) -> nn.Module:
        model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
        return get_peft_model(model, OFTConfig(oft_block_size=4, target_modules=["0"], **options))

    with pytest.raises(ConfigError, match="layer '0'.*Neumann series.*orthotune combine"):
        layer_strengths(adapted(use_cayley_neumann=True))
    with pytest.raises(ConfigError, match="modules that were trained in full: 1"):
        layer_strengths(adapted(modules_to_save=["1"]))
    with pytest.raises(ConfigError, match="biases"):
        layer_strengths(adapted(bias="oft_only"))
    dora = peft.LoraConfig(r=2, target_modules=["0"], use_dora=True)
    with pytest.raises(ConfigError, match="layer '0'.*DoRA"):
        layer_strengths(peft.get_peft_model(nn.Sequential(nn.Linear(8, 8)), dora))
    with pytest.raises(ConfigError, match="a model without an adapter"):
        layer_strengths(nn.Linear(2, 2))
