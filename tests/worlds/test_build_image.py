"""Building the image world: a stopped run goes on exactly where it was, and only what is good enough is installed."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import image_release
from image_pretrain import as_pipeline, new_text_encoder, new_unet, token_ids, train_denoiser
from image_release import WorseWorld, release
from image_tokenizer import new_tokenizer
from image_training import OutOfTime, Plan, train
from image_vae import new_vae, train_vae
from orthotune.worlds.image_captions import WORDS
from orthotune.worlds.image_classifiers import DIGITS, DIRECTIONS, Classifier, load_classifier

PLAN = Plan(steps=5, peak=1e-2, warmup=2, keep_every=2)


def slope(plan: Plan, path: Path, stop_after: int | None = None) -> torch.Tensor:
    """Weights of a line fitted with ``plan``, interrupted after some steps if asked."""
    torch.manual_seed(0)
    line = nn.Linear(3, 2)

    def loss_at(step: int) -> torch.Tensor:
        if step == stop_after:
            raise KeyboardInterrupt
        rows = torch.randn(7, 3, generator=torch.Generator().manual_seed(step))
        return (line(rows) - rows[:, :2]).square().mean()

    train(line, loss_at, plan, path)
    return torch.cat([p.detach().flatten() for p in line.parameters()])


def test_a_stopped_run_resumes_to_the_same_weights(tmp_path):
    whole = slope(PLAN, tmp_path / "whole.pt")
    with pytest.raises(KeyboardInterrupt):
        slope(PLAN, tmp_path / "stopped.pt", stop_after=3)
    assert torch.load(tmp_path / "stopped.pt", weights_only=True)["step"] == 2
    assert torch.equal(slope(PLAN, tmp_path / "stopped.pt"), whole)
    # a run that had ended gives its weights again
    assert torch.equal(slope(PLAN, tmp_path / "whole.pt"), whole)


def test_out_of_time_keeps_what_was_done(tmp_path):
    whole = slope(PLAN, tmp_path / "whole.pt")
    late = replace(PLAN, deadline=time.monotonic() - 1)
    for done in range(1, PLAN.steps):
        with pytest.raises(OutOfTime, match=f"{done} of 5 steps"):
            slope(late, tmp_path / "late.pt")
    assert torch.equal(slope(late, tmp_path / "late.pt"), whole)
    assert math.isinf(PLAN.deadline)


def test_autoencoder_and_denoiser_learn(tmp_path):
    pictures = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    vae, tokenizer = new_vae(0), new_tokenizer(WORDS)
    train_vae(vae, pictures, replace(PLAN, steps=1), tmp_path / "vae.pt", seed=0, batch=2)
    assert vae.config.scaling_factor > 0
    unet, encoder = new_unet(0), new_text_encoder(tokenizer, 0)
    before = {name: value.clone() for name, value in [*unet.named_parameters(), *encoder.named_parameters()]}
    latents, ids = torch.randn(8, 4, 8, 8), token_ids(tokenizer, ["a red one on a blue background", ""] * 4)
    train_denoiser(unet, encoder, latents, ids, replace(PLAN, steps=3), tmp_path / "denoiser.pt", seed=0, batch=2)
    after = dict([*unet.named_parameters(), *encoder.named_parameters()])
    still = [name for name, value in before.items() if torch.equal(value, after[name])]
    # the keys' bias drops out of a softmax
    assert not [name for name in still if "k_proj.bias" not in name]


@pytest.fixture
def untrained(image_sources, monkeypatch):
    monkeypatch.setattr(image_release, "PROMPTS", 9)
    monkeypatch.setattr(image_release, "STEPS", 2)
    tokenizer = new_tokenizer(WORDS)
    pipeline = as_pipeline(new_unet(0), new_text_encoder(tokenizer, 0), new_vae(0).eval(), tokenizer)
    judges = {"digit": Classifier(DIGITS), "subject": Classifier(DIRECTIONS)}
    return lambda out, draft: release(out, draft, {"seed": 0}, pipeline, image_sources, judges)


def test_a_world_below_the_gates_is_not_installed(untrained, tmp_path):
    with pytest.raises(WorseWorld, match=r"digit 0\.\d+ of 0\.95"):
        untrained(tmp_path / "out", tmp_path / "draft")
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "draft" / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors").is_file()


def test_a_worse_world_does_not_replace_a_better_one(untrained, tmp_path, monkeypatch):
    monkeypatch.setattr(image_release, "GATES", dict.fromkeys(image_release.GATES, 0.0))
    out = tmp_path / "out"
    card = untrained(out, tmp_path / "draft")
    assert json.loads((out / "card.json").read_text()) == card
    assert load_classifier(out / "subject_judge.safetensors", DIRECTIONS)(torch.zeros(1, 3, 32, 32)).shape == (
        1,
        DIRECTIONS,
    )
    better = json.dumps({"follows": {"digit": 1.0, "ink": 1.0, "ground": 1.0}})
    (out / "card.json").write_text(better)
    with pytest.raises(WorseWorld, match="follows more of its prompts"):
        untrained(out, tmp_path / "draft")
    assert (out / "card.json").read_text() == better
