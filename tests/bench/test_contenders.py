"""Everybody starts from the frozen model's output, on PEFT's classes where PEFT is meant."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import PeftType

import orthotune
from harness.cells import Cell
from harness.contenders import FLOOR, LLAMA, OTHERS, UNET, Contender, contenders, fresh, stirred
from harness.subject import subject

CPU = torch.device("cpu")
TINY = Cell(hidden=128, tokens=5, layers=1, dtype="float32")
UNET_CELL = Cell(hidden=32, tokens=16, layers=2, dtype="float32", model="unet")
CASES = [(TINY, c) for c in LLAMA + OTHERS] + [(UNET_CELL, c) for c in UNET]
the_frozen = cache(subject)


@pytest.mark.parametrize(("cell", "contender"), CASES, ids=[f"{cell.model}-{c.name}" for cell, c in CASES])
def test_fresh_is_the_frozen_model_and_stirred_is_not(cell: Cell, contender: Contender) -> None:
    if cell.model == "unet":
        pytest.importorskip("diffusers")
    frozen = the_frozen(cell, CPU)
    expected = frozen.call(frozen.model, frozen.x)
    # HRA multiplies pairs of equal reflections, which cancel up to float32 rounding
    atol = 1e-5 if contender.name == "peft_hra" else 0.0
    # a bias that is added after the rotation is rounded once more than one within the convolution
    atol = 1e-5 if contender.name == "orthotune_out" else atol
    torch.testing.assert_close(frozen.call(fresh(contender, frozen, cell), frozen.x), expected, atol=atol, rtol=0)
    moved = (frozen.call(stirred(contender, frozen, cell), frozen.x) - expected).abs().max()
    assert (moved > 1e-3) == (contender.name != FLOOR)


def test_the_floor_is_first_and_the_others_only_come_when_asked() -> None:
    for name in ("targets", "others"):
        assert contenders(name, TINY)[0].name == FLOOR
    assert len(contenders("others", TINY)) == len(contenders("targets", TINY)) + 2
    assert contenders("unet", UNET_CELL) == UNET


@pytest.mark.parametrize("contender", LLAMA[1:], ids=lambda c: c.name)
def test_peft_is_measured_by_its_own_classes_and_orthotune_stays_registered(contender: Contender) -> None:
    frozen = the_frozen(TINY, CPU)
    layers = fresh(contender, frozen, TINY).base_model.layers[0]
    adapted = [layers.self_attn.q_proj, layers.self_attn.o_proj, layers.mlp.gate_proj, layers.mlp.down_proj]
    home = "orthotune." if contender.name.startswith("orthotune") else "peft."
    assert all(type(layer).__module__.startswith(home) for layer in adapted)
    assert PEFT_TYPE_TO_TUNER_MAPPING[PeftType.OFT] is orthotune.OFTModel


def test_all_seven_projections_are_adapted_in_the_asked_size() -> None:
    cell = replace(TINY, block_size=64)
    frozen = the_frozen(cell, CPU)
    model = fresh(LLAMA[4], frozen, cell)
    sizes = [module.oft_block_size["default"] for module in model.modules() if hasattr(module, "oft_block_size")]
    assert sizes == [64] * 7


def test_contenders_share_the_frozen_weights() -> None:
    frozen = the_frozen(TINY, CPU)
    own = {p.data_ptr() for p in frozen.model.parameters()}
    for contender in LLAMA:
        model = fresh(contender, frozen, TINY)
        assert {p.data_ptr() for p in model.parameters() if not p.requires_grad} == own
    assert not any(p.requires_grad for p in frozen.model.parameters())


def test_convolutions_of_the_unet_turn() -> None:
    pytest.importorskip("diffusers")
    frozen = the_frozen(UNET_CELL, CPU)
    both, attention = (fresh(UNET[i], frozen, UNET_CELL) for i in (2, 5))
    kinds = [{type(m).__name__ for m in model.modules() if hasattr(m, "oft_R")} for model in (both, attention)]
    assert kinds == [{"Conv", "Linear"}, {"Linear"}]
