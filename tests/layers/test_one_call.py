"""Where no memo can hold a rotation, as on a GPU: one batch for all layers of a call, and no wait for the device."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from orthotune.kernels import from_parameters
from orthotune.layers import parametrization
from orthotune.layers.parametrization import group
from orthotune.layers.parametrization.memo import Memo
from orthotune.layers.parametrization.one_call import in_one_call, one_call
from orthotune.tuner.config import OFTConfig
from tests.support.no_waiting import NoWaiting

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TOKENS = torch.arange(6)[None]


def _model(**fields: Any) -> Any:
    shape = LlamaConfig(
        vocab_size=16, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=16,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = get_peft_model(
            LlamaForCausalLM(shape),
            OFTConfig(**{"oft_block_size": 8, "use_cayley_neumann": False, "target_modules": PROJECTIONS, **fields}),
        )
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.normal_(std=0.1)
    return model


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Blocks of each batch; nothing can be cached, as on a GPU."""
    sizes: list[int] = []
    original = from_parameters.rotation_of

    def counted(spec: Any, v: torch.Tensor, known: Any = None) -> torch.Tensor:
        if known is None:
            sizes.append(v.shape[-2])
        return original(spec, v, known)

    monkeypatch.setattr(group, "rotation_of", counted)
    monkeypatch.setattr(parametrization.rotation, "rotation_of", counted)
    monkeypatch.setattr(Memo, "can_hold", staticmethod(lambda weight: False))
    return sizes


def _gradients(model: Any) -> list[torch.Tensor]:
    model(TOKENS, labels=TOKENS).loss.backward()
    found = [parameter.grad.clone() for parameter in model.parameters() if parameter.requires_grad]
    model.zero_grad()
    return found


@pytest.mark.parametrize("checkpointing", [None, True, False], ids=["none", "reentrant", "not reentrant"])
def test_one_batch_for_a_training_step_with_the_same_gradients(
    checkpointing: bool | None, computed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _model().train()
    if checkpointing is not None:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
    found = _gradients(model)
    # 2 layers of 6 inputs of 32 and one of 48 features; recomputed layers compute for themselves
    assert computed[0] == 2 * (6 * 4 + 6)
    if checkpointing is None:
        assert len(computed) == 1
    monkeypatch.undo()
    for mine, expected in zip(found, _gradients(model), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-7)  # float32, sums in another order
    assert not in_one_call()


def test_every_call_reads_the_parameters_anew(computed: list[int]) -> None:
    model = _model().eval()
    with torch.no_grad():
        before = model(TOKENS).logits
        assert len(computed) == 1
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.mul_(2)
        assert (model(TOKENS).logits - before).abs().max() > 1e-3
    assert len(computed) == 2


def test_a_generation_computes_its_rotations_once(computed: list[int]) -> None:
    model = _model().eval()
    model.generate(input_ids=TOKENS, max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert len(computed) == 1


def test_a_strength_that_changes_within_a_call_is_seen(computed: list[int]) -> None:
    model = _model().eval()
    with torch.no_grad():
        with model._enable_peft_forward_hooks():
            full = model(TOKENS).logits
            model.base_model.set_scale("default", 0.5)
            half = model(TOKENS).logits
        torch.testing.assert_close(half, model(TOKENS).logits, rtol=0, atol=1e-6)
    assert (half - full).abs().max() > 1e-3


def _on_a_gpu(monkeypatch: pytest.MonkeyPatch, train: bool, **fields: Any) -> Any:
    """A model without numbers, on a device that is no processor: it takes the path of a GPU.

    Kernels of Triton, which are only started, are no part of it.
    """
    # torch has no autocast for this device.
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: False)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    return _model(**fields).to("meta").train(train)


def _run(model: Any, tokens: int, train: bool = False) -> torch.Tensor:
    x = torch.empty(1, tokens, 32, device="meta", requires_grad=train)
    rotary = (torch.empty(1, tokens, 16, device="meta"), torch.empty(1, tokens, 16, device="meta"))
    for layer in model.base_model.model.model.layers:
        x = layer(x, position_embeddings=rotary)
    return x


#: fields of an adapter, and how many batches of inverses a call of it takes: every rotation of the call in one
ADAPTERS: dict[str, tuple[dict[str, Any], int]] = {
    "b=8": ({"oft_block_size": 8}, 1),
    "b=16": ({"oft_block_size": 16}, 1),
    "shared": ({"oft_block_size": 8, "block_share": True}, 1),
    "neumann": ({"oft_block_size": 8, "use_cayley_neumann": True}, 0),
    "coft": ({"oft_block_size": 8, "coft": True, "eps": 0.3}, 14),  # its radius goes by the layer
    "magnitude": ({"oft_block_size": 8, "magnitude": True}, 1),
    "out": ({"oft_block_size": 8, "side": "out"}, 1),
    "reflections": ({"transform": "reflections", "r": 4, "oft_block_size": None}, 0),
    "butterfly": ({"transform": "butterfly", "oft_block_size": 4, "factors": 2}, None),
    "planes": ({"transform": "planes", "variant": "road_4", "side": "out"}, 0),
    "hyperplane": ({"transform": "hyperplane"}, 0),
}


@pytest.mark.parametrize("train", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", ADAPTERS)
def test_no_step_waits_for_the_device(train: bool, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fields, batches = ADAPTERS[name]
    model = _on_a_gpu(monkeypatch, train, **fields)
    with NoWaiting() as seen, torch.set_grad_enabled(train), model._enable_peft_forward_hooks():
        x = _run(model, 6, train)
        if train:
            x.sum().backward()
    assert batches is None or seen.names["linalg_inv_ex"] == batches


@pytest.mark.parametrize("make", [
    lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
    lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, foreach=False),
    lambda parameters: torch.optim.SGD(parameters, lr=1e-3, momentum=0.9),
], ids=["adamw", "adamw, one by one", "sgd"])  # fmt: skip
def test_neither_clipping_nor_an_optimizer_waits_for_the_device(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _on_a_gpu(monkeypatch, True)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = make(trained)
    with NoWaiting() as seen:
        for _ in range(2):  # the first step makes the optimizer's state
            with model._enable_peft_forward_hooks():
                _run(model, 6, True).sum().backward()
            assert all(parameter.grad is not None for parameter in trained)
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
    assert seen.names["linalg_inv_ex"] == 2


def test_no_decoded_token_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _on_a_gpu(monkeypatch, False)
    with NoWaiting() as seen, torch.no_grad(), one_call():
        _run(model, 6)
        for _ in range(3):
            _run(model, 1)
    assert seen.names["linalg_inv_ex"] == 1  # the rotations of a generation, once


@pytest.mark.parametrize("wait", [torch.Tensor.item, torch.Tensor.cpu, torch.Tensor.nonzero, torch.Tensor.tolist])
def test_the_guard_sees_a_wait(wait: Any) -> None:
    with NoWaiting(), pytest.raises(AssertionError, match="waits for the device"):
        wait(torch.empty((), device="meta"))
