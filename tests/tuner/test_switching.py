"""Deleting, switching off and on: what is trainable afterwards."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from peft import PeftModel
from torch import nn

from orthotune import OFTConfig, get_peft_model

KINDS = {
    "plain": {"target_modules": ["lin", "soft_in"]},
    "saved": {"target_modules": ["lin"], "modules_to_save": ["head"]},
    "two saved": {"target_modules": ["lin", "soft_in"], "modules_to_save": ["head", "head2"]},
    "elsewhere": {"target_modules": ["soft_in"]},
    "magnitude": {"target_modules": ["lin"], "magnitude": True},
}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin, self.soft_in, self.head, self.head2 = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x):
        return self.head2(self.head(self.soft_in(self.lin(x)).tanh()).tanh())


def config(kind, **fields):
    return OFTConfig(oft_block_size=4, **KINDS[kind], **fields)


def flags(model, without=()):
    return {key: p.requires_grad for key, p in model.named_parameters() if not any(f".{n}." in key for n in without)}


def alone(kind, name):
    """What is trainable in a model with one adapter."""
    return {key for key, flag in flags(get_peft_model(Net(), config(kind), adapter_name=name)).items() if flag}


@pytest.mark.parametrize("first", KINDS)
@pytest.mark.parametrize("second", KINDS)
@pytest.mark.parametrize("frozen", [False, True])
def test_deleting_the_active_adapter_leaves_the_other_one_as_it_was_alone(first, second, frozen):
    model = get_peft_model(Net(), config(first, inference_mode=frozen), adapter_name="first")
    before = flags(model)
    model.add_adapter("second", config(second))
    model.set_adapter("second")
    with pytest.warns(UserWarning, match="Setting active adapter to first"):
        model.delete_adapter("second")
    assert model.active_adapters == ["first"] and not [key for key in flags(model) if ".second" in key]
    after = flags(model)
    assert not [key for key in before if after.get(key, before[key]) != before[key]]
    assert {key for key, flag in flags(model).items() if flag} == (set() if frozen else alone(first, "first"))
    model(torch.zeros(1, 8)).sum().requires_grad_().backward()


@pytest.mark.parametrize("first", KINDS)
@pytest.mark.parametrize("second", KINDS)
def test_deleting_another_adapter_changes_nothing(first, second):
    model = get_peft_model(Net(), config(first), adapter_name="first")
    model.add_adapter("second", config(second))
    before = flags(model, without=["second"])
    model.delete_adapter("second")
    after = flags(model)
    assert not [key for key in before if after.get(key, before[key]) != before[key]]
    assert model.active_adapters == ["first"]


def test_one_successor_for_all_layers():
    """Layers that hold different adapters do not fall back on different ones."""
    model = get_peft_model(Net(), config("magnitude"), adapter_name="b")
    model.add_adapter("a", config("elsewhere"))
    model.add_adapter("c", config("plain"))
    model.set_adapter("c")
    model.delete_adapter("c")
    assert model.active_adapters == ["a"]
    assert {key for key, flag in flags(model).items() if flag} == alone("elsewhere", "a")


def test_the_last_adapter_leaves_the_base():
    model = get_peft_model(Net(), config("saved"))
    x = torch.ones(2, 8)
    with model.disable_adapter():
        expected = model(x)
    model.delete_adapter("default")
    assert torch.equal(model.base_model(x), expected) and model.base_model.active_adapters == []


def off_and_on(model, how):
    if how == "context":
        return model.disable_adapter()
    if how == "layers":
        model.base_model.disable_adapter_layers()
        model.base_model.enable_adapter_layers()
    if how == "nested":
        with model.disable_adapter(), model.disable_adapter():
            pass
    return nullcontext()


STATES = {
    "trained": lambda model: None,
    "frozen": lambda model: model.set_adapter("default", inference_mode=True),
    "by hand": lambda model: model.requires_grad_(False),
    "set_requires_grad": lambda model: model.set_requires_grad("default", False),
    "in part": lambda model: model.base_model.model.lin.oft_R.requires_grad_(False),
    "base too": lambda model: model.requires_grad_(True),
}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "elsewhere"])
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("how", ["context", "layers", "nested"])
def test_off_and_on_again_changes_no_flag(kind, state, how):
    model = get_peft_model(Net(), config(kind))
    model.add_adapter("other", config(kind))
    STATES[state](model)
    before = flags(model)
    with off_and_on(model, how):
        pass
    assert flags(model) == before


def test_a_loaded_adapter_stays_frozen(tmp_path):
    get_peft_model(Net(), config("two saved")).save_pretrained(str(tmp_path))
    model = PeftModel.from_pretrained(Net(), str(tmp_path))
    with model.disable_adapter():
        model(torch.ones(1, 8))
    assert not any(flags(model).values())


def test_what_is_switched_while_off_counts_afterwards():
    model = get_peft_model(Net(), config("saved"))
    model.add_adapter("other", config("plain"))
    with model.disable_adapter():
        model.set_adapter("other", inference_mode=True)
    assert not any(flags(model).values()) and model.active_adapters == ["other"]
    model.set_adapter("default")
    with model.disable_adapter():
        model.set_requires_grad("default", False)
    assert not any(flags(model).values())
    with model.disable_adapter():
        model.set_adapter("other")
    assert {key for key, flag in flags(model).items() if flag} == alone("plain", "other")
