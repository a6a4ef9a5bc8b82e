"""Pretraining of the text world: a stopped run goes on exactly where it was."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from text_pretrain import OPTIMIZERS, Schedule, new_model, pretrain, stream, train_tokenizer

TEXTS = [f"def f_{n}(x):\n    return x + {n}\n" for n in range(200)]
PLAN = Schedule(steps=3, batch=1, length=8, warmup=1, keep_every=1)


@pytest.fixture(autouse=True)
def one_thread():
    # Threads that wait for each other on a busy machine take far longer than steps this small.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS)


def train(tokenizer, plan, path):
    model = new_model(tokenizer, plan)
    pretrain(model, stream(tokenizer, TEXTS), plan, path)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_stream_closes_every_text(tokenizer):
    assert (stream(tokenizer, TEXTS) == tokenizer.eos_token_id).sum() == len(TEXTS)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_stopped_run_resumes_to_the_same_weights(tokenizer, tmp_path, monkeypatch, optimizer):
    plan = replace(PLAN, optimizer=optimizer)
    whole = train(tokenizer, plan, tmp_path / "whole.pt")
    steps = iter(range(100))

    def stop_at_third(self, *args, **kwargs):
        if next(steps) == 2:
            raise KeyboardInterrupt
        return fused_step(self, *args, **kwargs)

    fused_step = torch.optim.AdamW.step
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(torch.optim.AdamW, "step", stop_at_third)
        train(tokenizer, plan, tmp_path / "stopped.pt")
    assert torch.load(tmp_path / "stopped.pt", weights_only=True)["step"] == 2
    assert torch.equal(train(tokenizer, plan, tmp_path / "stopped.pt"), whole)


def test_the_seed_changes_the_weights(tokenizer, tmp_path):
    plan = replace(PLAN, steps=1)
    assert not torch.equal(
        train(tokenizer, plan, tmp_path / "a.pt"), train(tokenizer, replace(plan, seed=1), tmp_path / "b.pt")
    )


def test_width_and_layers_decide_the_size(tokenizer):
    released, larger = new_model(tokenizer, PLAN), new_model(tokenizer, replace(PLAN, width=384, layers=6))
    # A layer has 4 + 8 times the square of the width: its MLP is 8/3 times as wide.
    inside = [sum(p.numel() for p in m.model.layers.parameters() if p.ndim > 1) for m in (released, larger)]
    assert inside == [4 * 12 * 192**2, 6 * 12 * 384**2]


def test_optimizers_lead_to_different_weights(tokenizer, tmp_path):
    one, other = (train(tokenizer, replace(PLAN, steps=1, optimizer=name), tmp_path / name) for name in OPTIMIZERS)
    assert not torch.equal(one, other)
