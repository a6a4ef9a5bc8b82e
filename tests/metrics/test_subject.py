from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from orthotune.errors import ConfigError, DataError
from orthotune.metrics.subject import among_themselves, mean_similarity, measure_subject
from orthotune.metrics.vision_model import image_embeddings, load
from tests.support.images import clip, dino, noise, save


def test_similarity_by_hand() -> None:
    references = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    assert mean_similarity(torch.tensor([[1.0, 0.0], [0.6, 0.8]]), references).tolist() == pytest.approx([0, 0.8 / 3])
    # the pairs 0-1, 0-2, 1-2 have cosines 0, -1, 0
    assert among_themselves(references) == pytest.approx(-1 / 3)
    assert among_themselves(references[:1]) is None


def test_unrelated_embeddings_score_chance() -> None:
    one, other = (torch.nn.functional.normalize(torch.randn(200, 64), dim=1) for _ in range(2))
    # cosines in 64 dimensions spread by 1/8; the mean of 40,000 by less than 0.001
    assert abs(float(mean_similarity(one, other).mean())) < 0.01


def test_dino_is_the_class_token_and_the_subject_itself_scores_one(tmp_path: Path) -> None:
    model = dino(tmp_path / "dino")
    image = noise(0)
    folder = save(tmp_path / "images", a=image)
    found = measure_subject(folder, folder, measures=["dino"], dino=model)
    assert found.summary == {"dino": pytest.approx(1, abs=1e-5)}  # float32
    network, processor = load(model, "cpu")
    with torch.no_grad():
        token = network(**processor(images=[image], return_tensors="pt")).last_hidden_state[0, 0]
    (ours,) = image_embeddings([image], network, processor)
    assert ours.tolist() == pytest.approx((token / token.norm()).tolist(), abs=1e-6)


def test_batches_and_sizes_do_not_matter(tmp_path: Path) -> None:
    network, processor = load(dino(tmp_path / "dino"), "cpu")
    images = [noise(seed, 20 + seed, 30 - seed) for seed in range(5)]
    together, alone = (image_embeddings(images, network, processor, size) for size in (4, 1))
    assert (together - alone).abs().max() < 1e-5  # float32 sums in another order


def test_clip_scores_are_the_models_own(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    model = clip(tmp_path / "clip")
    images = {"a": noise(0), "b": noise(1)}
    results = save(tmp_path / "results", **images)
    prompts = {"a": "a cat", "b": "dog"}
    lines = [json.dumps({"result": f"{name}.png", "prompt": words}) for name, words in prompts.items()]
    (results / "manifest.jsonl").write_text("\n".join(lines))
    references = save(tmp_path / "references", x=noise(0), y=noise(1))
    found = measure_subject(results, references, measures=["clip-i", "clip-t"], clip=model)

    network, processor = load(model, "cpu")
    words = AutoTokenizer.from_pretrained(model)(list(prompts.values()), padding=True, return_tensors="pt")
    with torch.no_grad():
        out = network(
            input_ids=words["input_ids"], attention_mask=words["attention_mask"],
            **processor(images=list(images.values()), return_tensors="pt"),
        )  # fmt: skip
    cosines = out.logits_per_image / network.logit_scale.exp()
    assert [row["clip_t"] for row in found.rows] == pytest.approx(cosines.diagonal().tolist(), abs=1e-5)
    between = float(out.image_embeds[0] @ out.image_embeds[1])
    assert found.summary["clip_i"] == pytest.approx((1 + between) / 2, abs=1e-5)
    assert found.summary["clip_i_of_real_images"] == pytest.approx(between, abs=1e-5)
    assert found.settings["prompts_cut"] == 0
    cut = measure_subject(results, references, results / "manifest.jsonl", measures=["clip-t"], clip=model)
    assert cut.summary["clip_t"] == pytest.approx(float(cosines.diagonal().mean()), abs=1e-5)


def test_each_subject_is_compared_with_its_own_photographs(tmp_path: Path) -> None:
    model = dino(tmp_path / "dino")
    results = save(tmp_path / "results", one=noise(1), two=noise(2))
    lines = [json.dumps({"result": f"{name}.png", "subject": name}) for name in ("one", "two")]
    (results / "manifest.jsonl").write_text("\n".join(lines))
    for name, seed in (("one", 1), ("two", 2)):
        save(tmp_path / "references" / name, photo=noise(seed))
    found = measure_subject(results, tmp_path / "references", measures=["dino"], dino=model)
    assert [row["dino"] for row in found.rows] == pytest.approx([1, 1], abs=1e-5)


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    folder = save(tmp_path / "images", a=noise(0))
    with pytest.raises(ConfigError, match="dino, clip-i, clip-t, lpips"):
        measure_subject(folder, folder, measures=["dinosaur"])
    model = clip(tmp_path / "clip")
    with pytest.raises(DataError, match=r"prompt of a\.png.*--prompt"):
        measure_subject(folder, folder, measures=["clip-t"], clip=model)
    with pytest.raises(DataError, match="no text side"):
        measure_subject(folder, folder, measures=["clip-t"], clip=dino(tmp_path / "dino"), prompt="x")
    long = measure_subject(folder, folder, measures=["clip-t"], clip=model, prompt="abcdefghijklmnop")
    assert long.settings["prompts_cut"] == 1
    (folder / "b.png").write_bytes(b"")
    half = measure_subject(folder, save(tmp_path / "real", a=noise(0)), measures=["dino"], dino=str(tmp_path / "dino"))
    assert len(half.rows) == 1
    assert "b.png" in half.skipped[0]
