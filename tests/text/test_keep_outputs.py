"""The penalty on changed outputs: its value, its gradient, and what it leaves alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import nn

from orthotune import OFTConfig, get_peft_model
from orthotune.metrics.drift import text_drift
from orthotune.metrics.text_loss import IGNORED, TokenRow
from orthotune.runs.adapter_off import adapter_off
from orthotune.runs.quiet import quiet
from orthotune.text.data import Examples
from orthotune.text.keep_outputs import KeepOutputs, change_of_outputs, counted, divergence
from orthotune.text.sft_trainer import KEPT, build_trainer, domain_rows, kept_rows, sft_config
from orthotune.text.trainer import TrainerParts
from tests.support.tiny_text import make_model, make_tokenizer

# Of uneven length; the second row counts two tokens of its three predicted ones.
ROWS = [TokenRow([5, 6, 7, 8, 9, 10, 11], [5, 6, 7, 8, 9, 10, 11]), TokenRow([9, 8, 7, 6], [9, IGNORED, 7, 6])]
OFT = {"oft_block_size": 8, "target_modules": "all-linear"}
CONFIGS: dict[str, Any] = {
    "oft": lambda: OFTConfig(**OFT),
    "coft": lambda: OFTConfig(**OFT, coft=True, eps=0.5),
    "dropout": lambda: OFTConfig(**OFT, module_dropout=0.5),
    "out": lambda: OFTConfig(**OFT, side="out"),
    "lora": lambda: LoraConfig(r=2, target_modules="all-linear", lora_dropout=0.5),
    "saved": lambda: LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["norm"]),
}


def _base() -> Any:
    """The tiny model with layers that have a say in what it predicts: a change stands out of rounding."""
    model = make_model()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight.data *= 8
    return model


def _adapted(name: str = "oft", moved: bool = False) -> Any:
    model = get_peft_model(_base(), CONFIGS[name]())
    return _moved(model).train() if moved else model.train()


def _moved(model: Any) -> Any:
    torch.manual_seed(1)
    for parameter in _trained(model):
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def test_a_divergence_worked_by_hand() -> None:
    # Two tokens of a vocabulary of three. The first: p = (1/2, 1/4, 1/4) from q = (1/4, 1/4, 1/2), whatever is added to
    # the logits: 1/2 ln 2 + 0 + 1/4 ln 1/2 = 1/4 ln 2. The second one did not move.
    base = torch.tensor([[2.0, 1.0, 1.0], [3.0, 3.0, 3.0]]).log() + torch.tensor([[7.0], [-4.0]])
    adapted = torch.tensor([[1.0, 1.0, 2.0], [1.0, 1.0, 1.0]]).log().requires_grad_(True)
    found = divergence(base, adapted)
    # a few roundings of float32
    assert found.item() == pytest.approx(0.25 * math.log(2), rel=1e-6)
    found.backward()
    # the gradient to a logit is q - p
    expected = torch.tensor([[-0.25, 0.0, 0.25], [0.0, 0.0, 0.0]])
    assert adapted.grad is not None
    torch.testing.assert_close(adapted.grad, expected, rtol=0, atol=1e-6)


def test_half_precision_is_compared_in_float32() -> None:
    # Logits of bfloat16 that differ by one step of it: the divergence is of the order of the step's square.
    base, near = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0078125, 0.0]])
    found = divergence(base.bfloat16(), near.bfloat16())
    assert found.dtype == torch.float32
    # float32 keeps the logarithms to 6e-8, of which the divergence is a difference.
    assert found.item() == pytest.approx(divergence(base.double(), near.double()).item(), abs=3e-7)
    assert found.item() > 3e-6


@pytest.mark.parametrize("name", CONFIGS)
def test_a_fresh_adapter_has_neither_penalty_nor_gradient(name: str) -> None:
    model = _adapted(name)
    found = change_of_outputs(model, ROWS)
    # p log p/p of the same numbers; LoRA adds an exact zero, a rotation is the identity to its last bit.
    assert found.item() == pytest.approx(0, abs=1e-6)
    found.backward()
    gradients = [parameter.grad for parameter in _trained(model)]
    assert gradients and all(gradient is not None for gradient in gradients)
    # q - p is zero but for the rounding of a sum of probabilities; the loss itself has gradients of 1e-2.
    assert max(float(gradient.abs().max()) for gradient in gradients if gradient is not None) < 1e-6


@pytest.mark.parametrize("name", ["oft", "coft", "out", "saved"])
def test_the_penalty_is_the_drift_that_is_measured(name: str) -> None:
    model = _adapted(name, moved=True)
    found = change_of_outputs(model, ROWS)
    measured = text_drift(model, ROWS)
    assert measured.tokens == counted(ROWS) == 8
    # The same numbers in float32, summed in another order.
    assert found.item() / counted(ROWS) == pytest.approx(measured.kl, rel=1e-4) and measured.kl > 1e-5


def test_the_gradient_is_that_of_a_difference() -> None:
    model = _adapted("oft", moved=True).double()
    parameter = _trained(model)[3]
    change_of_outputs(model, ROWS).backward()
    assert parameter.grad is not None
    torch.manual_seed(2)
    way, step, ends = torch.randn_like(parameter), 1e-4, []
    for sign in (1, -1):
        with torch.no_grad():
            parameter += sign * step * way
            ends.append(change_of_outputs(model, ROWS).item())
            parameter -= sign * step * way
    # The norms of the model compute in float32: 1e-7 of a divergence near 1, over twice the step.
    assert (ends[0] - ends[1]) / (2 * step) == pytest.approx((parameter.grad * way).sum().item(), rel=1e-3)


@pytest.mark.parametrize("name", ["dropout", "lora", "saved"])
def test_the_base_is_the_base_and_nothing_else_changes(name: str) -> None:
    model, base = _adapted(name, moved=True), _base().train()
    frozen = _trained(model)[0].requires_grad_(False)
    ids = torch.tensor([[5, 6, 7]])
    before = torch.get_rng_state()
    modes = [module.training for module in model.modules()]
    with adapter_off(model), torch.no_grad():
        found = model(input_ids=ids).logits
    # The same operations on the same numbers: dropout of blocks and of LoRA's input draws nothing.
    assert torch.equal(found, base(input_ids=ids).logits)
    assert torch.equal(torch.get_rng_state(), before)
    assert modes == [module.training for module in model.modules()]
    assert not frozen.requires_grad and len(_trained(model)) > 0
    with torch.no_grad():
        assert not torch.equal(model(input_ids=ids).logits, found)


def test_an_adapter_that_was_off_stays_off() -> None:
    model = _adapted("oft", moved=True)
    model.base_model.disable_adapter_layers()
    with adapter_off(model):
        pass
    assert text_drift(model, ROWS).kl == 0.0


def test_rotations_are_computed_once_for_both_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    from orthotune.layers.parametrization.rotation import Rotation

    computed: list[Rotation] = []
    refresh = Rotation._renew
    monkeypatch.setattr(Rotation, "_renew", lambda self: (computed.append(self), refresh(self))[1])
    model = _adapted("oft", moved=True)
    model(input_ids=torch.tensor([[5, 6, 7]])).logits.sum()
    once = len(computed)
    change_of_outputs(model, ROWS).backward()
    assert once > 0 and len(computed) == once


@pytest.mark.parametrize("name", ["oft", "coft", "lora"])
def test_gradient_checkpointing_changes_nothing(name: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = _adapted(name, moved=True)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        change_of_outputs(model, ROWS).backward()
        gradients.append([parameter.grad for parameter in _trained(model)])
    for one, other in zip(*gradients, strict=True):
        # The same operations, run again.
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_rows_are_drawn_by_seed_step_and_part_alone() -> None:
    rows = [TokenRow([number, 1], [number, 1]) for number in range(9)]
    keep = KeepOutputs(1.0, rows, batch=4)
    state = torch.get_rng_state()
    drawn = [keep.chosen(step, part) for step in range(20) for part in range(2)]
    assert drawn == [keep.chosen(step, part) for step in range(20) for part in range(2)]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(len({row.input_ids[0] for row in batch}) == 4 for batch in drawn)
    assert {row.input_ids[0] for batch in drawn for row in batch} == set(range(9))
    assert KeepOutputs(1.0, rows, batch=4, seed=1).chosen(0) != keep.chosen(0)
    assert len(KeepOutputs(1.0, rows[:2], batch=4).chosen(0)) == 2


# In the trainer.

PAIRS = Examples(
    [{"prompt": "ab" * (1 + n % 3), "completion": "cd" * (1 + n % 2)} for n in range(8)], "prompt-completion", "new"
)
OLD = Examples([{"text": "the old text number " + "one" * n} for n in range(5)], "text", "old")


def _trainer(
    folder: Path, examples: Examples = PAIRS, weight: float | None = None, batch: int = 2, **options: Any
) -> Any:
    def keep(trainer: Any) -> KeepOutputs:
        assert weight is not None
        return KeepOutputs(weight, kept_rows(trainer), batch)

    parts = TrainerParts(losses=() if weight is None else (keep,))
    said = {
        "schedule": "constant",
        "bf16": False,
        "max_length": 16,
        "per_device_train_batch_size": 2,
        "save_steps": 100,
    }
    said |= {"learning_rate": 1e-2, "max_steps": 3, "packing": "none", "data_format": examples.format} | options
    arguments = sft_config(folder, **said)
    with quiet():
        return build_trainer(_base(), make_tokenizer(), arguments, examples, {KEPT: OLD}, OFTConfig(**OFT), parts)


def _train(trainer: Any) -> Any:
    with quiet():
        trainer.train()
    return trainer


def test_kept_texts_are_tokenized_and_not_measured(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path)
    assert domain_rows(trainer) == {}
    assert len(kept_rows(trainer)) >= 5 and max(len(row.input_ids) for row in kept_rows(trainer)) == 16


def test_what_is_logged_is_what_was_added_to_the_loss(tmp_path: Path) -> None:
    # The same step with two weights, from parameters that have moved: the loss grows by weight times what is logged.
    losses, kept = [], []
    for weight in (1.0, 5.0):
        trainer = _trainer(tmp_path, weight=weight, max_steps=1)
        _moved(trainer.model)
        log = _train(trainer).state.log_history[0]
        losses.append(log["loss"])
        kept.append(log["keep_nats"])
    assert kept[0] == kept[1] > 1e-3
    # float32 sums near 6
    assert losses[1] - losses[0] == pytest.approx(4 * kept[0], rel=1e-4)


@pytest.mark.parametrize("packing", ["none", "wrapped"])
def test_a_step_in_parts_is_a_mean_over_them(tmp_path: Path, packing: str) -> None:
    examples = PAIRS if packing == "none" else OLD
    trainer = _trainer(tmp_path, examples, packing=packing, gradient_accumulation_steps=2, max_steps=1)
    _moved(trainer.model)
    with torch.no_grad():
        keep = KeepOutputs(0.0, kept_rows(trainer), 3)
        parts = [keep.chosen(0, part) for part in range(2)]
        expected = [change_of_outputs(trainer.model, rows).item() / counted(rows) for rows in parts]
    seen: dict[float, Any] = {}
    for weight in (1.0, 5.0):
        options = {"packing": packing, "gradient_accumulation_steps": 2, "max_steps": 1}
        again = _trainer(tmp_path, examples, weight, batch=3, **options)
        again.model.load_state_dict(trainer.model.state_dict())
        seen[weight] = _train(again).state.log_history[0]
        assert seen[weight]["keep_nats"] == pytest.approx(sum(expected) / 2, rel=1e-4)
    # Once in the loss, not once for each part and not half.
    assert seen[5.0]["loss"] - seen[1.0]["loss"] == pytest.approx(4 * sum(expected) / 2, rel=1e-3)


def test_nothing_kept_is_the_trainer_as_it_was(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path)
    with quiet():
        trainer.train()
    assert all("keep_nats" not in line for line in trainer.state.log_history)


def test_a_strong_penalty_holds_the_outputs(tmp_path: Path) -> None:
    drifts = []
    for weight in (0.01, 20.0):
        trainer = _train(_trainer(tmp_path, weight=weight, batch=5, max_steps=12))
        drifts.append(text_drift(trainer.model, kept_rows(trainer)).kl)
    assert drifts[1] < drifts[0] / 2


def test_bfloat16_autocast(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path, weight=1.0, bf16=True)
    log = _train(trainer).state.log_history
    assert log[0]["keep_nats"] == pytest.approx(0, abs=1e-6)
    assert all(math.isfinite(line["keep_nats"]) for line in log[:3]) and log[2]["keep_nats"] > 0
