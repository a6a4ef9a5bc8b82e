"""LPIPS by torchmetrics, with a random SqueezeNet in the place where torchvision looks for its weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from orthotune.errors import ConfigError, DataError
from orthotune.metrics.diversity import Perceptual, summed_distance
from orthotune.metrics.subject import measure_subject
from tests.support.images import noise, save


@pytest.fixture
def squeeze(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchmetrics")
    try:
        from torchvision.models import SqueezeNet1_1_Weights, squeezenet1_1
    except (ImportError, RuntimeError) as fault:  # RuntimeError: built for another torch
        pytest.skip(f"no torchvision for this torch: {fault}")
    torch.manual_seed(0)
    weights = squeezenet1_1().state_dict()
    place = tmp_path / "hub" / "checkpoints"
    place.mkdir(parents=True)
    torch.save(weights, place / Path(SqueezeNet1_1_Weights.IMAGENET1K_V1.url).name)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))


def test_an_unknown_network_is_refused() -> None:
    with pytest.raises(ConfigError, match="alex, vgg, squeeze"):
        Perceptual("alexnet")


def test_same_images_have_no_distance_and_pairs_are_counted(squeeze: None) -> None:
    perceptual = Perceptual("squeeze")
    images = [noise(0, 64, 72), noise(1, 64, 72), noise(0, 64, 72)]
    assert perceptual.distance(images[0], images[2]) == 0
    between = perceptual.distance(images[0], images[1])
    assert between > 0
    total, pairs = summed_distance(images, perceptual)
    assert (total, pairs) == (pytest.approx(2 * between, rel=1e-5), 3)
    with pytest.raises(DataError, match="72 x 64 and 64 x 64 pixels"):
        perceptual.distance(images[0], noise(0, 64, 64))


def test_diversity_is_among_results_of_one_prompt(squeeze: None, tmp_path: Path) -> None:
    results = save(tmp_path / "results", a=noise(0, 64, 72), b=noise(1, 64, 72), c=noise(0, 64, 72))
    lines = ['{"result": "a.png", "prompt": "x"}', '{"result": "b.png", "prompt": "y"}']
    (tmp_path / "m.jsonl").write_text("\n".join([*lines, '{"result": "c.png", "prompt": "x"}']))
    same = measure_subject(results, results, tmp_path / "m.jsonl", measures=["lpips"], lpips="squeeze")
    assert same.summary == {"lpips": 0}
    all_ = measure_subject(results, results, measures=["lpips"], lpips="squeeze")
    assert all_.summary["lpips"] > 0
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError, match="one result per prompt"):
        measure_subject(results, results, tmp_path / "m.jsonl", measures=["lpips"], lpips="squeeze")
