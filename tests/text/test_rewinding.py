"""Strengths chosen after training: groups, curve, trained strengths, intervals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from orthotune import OFTConfig, get_peft_model
from orthotune.metrics.text_loss import TokenRow, mean_loss, row_losses
from orthotune.runs.layer_strengths import layer_strengths
from orthotune.runs.rewinding import Losses, Point, difference, groups_of
from orthotune.text.rewinding import TextRewinding, overlap
from tests.support.tiny_text import make_model

NAMES = ["model.layers.0.self_attn.q_proj", "model.layers.10.mlp.down_proj", "lm_head"]


def rows(count: int, seed: int, length: int = 12) -> list[TokenRow]:
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randint(2, 40, (length - index % 3,), generator=generator).tolist() for index in range(count)]
    return [TokenRow(ids, ids) for ids in made]


@pytest.fixture
def model() -> Any:
    tuned = get_peft_model(make_model(), OFTConfig(oft_block_size=8, target_modules="all-linear")).eval()
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(len(name)))
    return tuned


@pytest.mark.parametrize(
    ("by", "groups"),
    [
        ("one", ["all", "all", "all"]),
        ("kind", ["attention", "mlp", "others"]),
        ("projection", ["q_proj", "down_proj", "lm_head"]),
        ("depth", ["layer 0", "layer 10", "no layer"]),
        ("layer", NAMES),
    ],
)
def test_groups(by: Any, groups: list[str]) -> None:
    assert list(groups_of(NAMES, by).values()) == groups


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("transformer.h.3.attn.c_attn", "attention"), ("transformer.h.3.mlp.c_fc", "mlp"),
        ("encoder.block.0.layer.0.SelfAttention.q", "attention"),
        ("encoder.block.0.layer.1.DenseReluDense.wi_0", "mlp"), ("model.decoder.layers.1.fc2", "mlp"),
        ("model.layers.2.mlp.experts.gate_up_proj", "mlp"), ("model.decoder.layers.1.self_attn.out_proj", "attention"),
    ],
)  # fmt: skip
def test_kinds_of_other_families(name: str, kind: str) -> None:
    assert groups_of([name], "kind")[name] == kind


def test_rows_keep_their_order_and_add_up_to_the_mean(model: Any) -> None:
    some = rows(7, 1)
    found = row_losses(model, some)
    alone = [row_losses(model, [row])[0] for row in some]
    for (nats, tokens), (wanted, count) in zip(found, alone, strict=True):
        assert tokens == count and nats == pytest.approx(wanted, rel=1e-5)  # float32 in batches of another shape
    total = mean_loss(model, some)
    assert sum(tokens for _, tokens in found) == total.tokens
    assert sum(nats for nats, _ in found) / total.tokens == pytest.approx(total.nats, rel=1e-12)


def test_trained_strengths_lower_the_loss_and_nothing_else_changes(model: Any) -> None:
    layers = layer_strengths(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    choosing = TextRewinding(model, layers, {"new": rows(8, 1), "old": rows(8, 2)})
    groups = groups_of(layers.names, "projection")

    def loss(strengths: dict[str, float]) -> float:
        new, old = choosing.measure({name: strengths[group] for name, group in groups.items()}).means
        return new + old

    start = dict.fromkeys(groups.values(), 1.0)
    # An untrained model with random rotations: less of them is better on either domain.
    chosen = choosing.train(groups, 1.0, 1.0, steps=15, amount=200)
    assert set(chosen) == set(start) and loss(chosen) < loss(start) - 1e-3
    assert chosen == choosing.train(groups, 1.0, 1.0, steps=15, amount=200)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert all(p.grad is None for p in model.parameters())
    layers.set(dict.fromkeys(layers.names, 1.0))
    assert choosing.measure({}).means == choosing.measure(dict.fromkeys(layers.names, 1.0)).means


def test_the_curve_finds_the_top_between_its_points(model: Any) -> None:
    layers = layer_strengths(model)
    choosing = TextRewinding(model, layers, {"new": rows(4, 1), "old": rows(4, 2)})
    fake = {"measured": 0}

    def measure(strengths: dict[str, float]) -> Losses:
        fake["measured"] += 1
        t = next(iter(strengths.values()))
        return Losses(((10 - 2 * t + t * t, 1),), ((5.0 + 0.5 * t * t, 1),))

    choosing.measure = measure  # type: ignore[method-assign]
    choosing.base = measure({"a": 0.0})
    curve = choosing.curve(1.0)
    best = max(curve, key=lambda point: point.worth(1.0))
    assert best.strengths["all"] == pytest.approx(2 / 3, abs=1e-3)  # of 2t - t^2 - t^2 / 2
    assert [p.strengths["all"] for p in curve] == sorted(p.strengths["all"] for p in curve)
    assert curve[0].gain == curve[0].forgetting == 0.0


def test_old_texts_that_become_easier_are_worth_nothing(model: Any) -> None:
    assert Point({}, 0.5, -0.3).worth(2.0) == 0.5 and Point({}, 0.5, 0.1).worth(2.0) == pytest.approx(0.3)


def test_the_interval_is_that_of_the_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(5, 20, (200,), generator=generator).tolist()
    noise = torch.randn(200, generator=generator).tolist()
    other = Losses(tuple((0.0, n) for n in counts), ((1.0, 1),))
    one = Losses(tuple((n * (0.5 + 0.1 * e), n) for n, e in zip(counts, noise, strict=True)), ((1.0, 1),))
    mean, half = difference(one, other)["new"]
    # 0.1 of noise a row over 200 rows: 1.96 * 0.1 / sqrt(200) = 0.0139, and more for rows of unequal length.
    assert mean == pytest.approx(0.5, abs=0.03) and 0.012 < half < 0.018
    assert difference(one, other)["old"] == (0.0, math.inf)


def test_overlap_counts_old_rows() -> None:
    text = list(range(40))
    new = [TokenRow(text, text)]
    old = [TokenRow([90, *text[5:18], 91], []), TokenRow([90, *text[5:17], 91], []), TokenRow([1, 2], [])]
    assert overlap(new, old) == pytest.approx(1 / 3)
    assert overlap([], old) == 0.0 == overlap(new, [])
