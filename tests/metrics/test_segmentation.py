from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from orthotune.errors import DataError
from orthotune.metrics.segmentation import colours, confusion, measure_segmentation, segmentation_scores
from tests.support.images import noise, save, segformer


def _save_map(folder: Path, name: str, classes: torch.Tensor) -> None:
    folder.mkdir(exist_ok=True)
    Image.fromarray(classes.numpy().astype(np.uint8)).save(folder / f"{name}.png")


def test_three_classes_by_hand() -> None:
    wanted = torch.tensor([[0, 0, 0, 1], [1, 1, 255, 255]])
    found = torch.tensor([[0, 0, 1, 1], [1, 2, 2, 0]])
    matrix = confusion(wanted, found, 4)
    assert matrix.tolist() == [[2, 1, 0, 0], [0, 2, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    scores = segmentation_scores(matrix)
    # IoU 2/3, 2/4, 0/1; class 3 never occurs. Recall 2/3 and 2/3. Four of six pixels are right.
    assert scores == pytest.approx({"miou": (2 / 3 + 1 / 2 + 0) / 3, "macc": 2 / 3, "aacc": 4 / 6})


def test_extremes() -> None:
    wanted = torch.from_numpy(np.random.default_rng(0).integers(0, 4, (300, 301)))
    other = torch.from_numpy(np.random.default_rng(1).integers(0, 4, (300, 301)))
    assert segmentation_scores(confusion(wanted, wanted, 4)) == {"miou": 1, "macc": 1, "aacc": 1}
    # four classes of equal share: recall 1/4, IoU (1/16) / (7/16); 90,300 pixels leave a spread near 0.002
    assert segmentation_scores(confusion(wanted, other, 4)) == pytest.approx(
        {"miou": 1 / 7, "macc": 1 / 4, "aacc": 1 / 4}, abs=0.01
    )


def test_matrix_and_scores_are_those_of_torchmetrics() -> None:
    functional = pytest.importorskip("torchmetrics.functional.classification")
    wanted, found = (torch.randint(5, (40, 31), generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    wanted[:3] = 255
    matrix = confusion(wanted, found, 5)
    theirs = functional.multiclass_confusion_matrix(found, wanted, 5, ignore_index=255)
    assert (matrix == theirs).all()
    jaccard = functional.multiclass_jaccard_index(found, wanted, 5, ignore_index=255)
    assert segmentation_scores(matrix)["miou"] == pytest.approx(float(jaccard), rel=1e-6)  # theirs is float32


def test_class_numbers_beyond_the_model_are_refused() -> None:
    with pytest.raises(DataError, match="Found: class 7. Needed: 0 to 3. Pass --classes or --ignored"):
        confusion(torch.tensor([7]), torch.tensor([0]), 4)


def test_given_maps_need_no_model(tmp_path: Path) -> None:
    wanted = torch.tensor([[0, 1, 2], [2, 1, 0]])
    results = save(tmp_path / "results", a=noise(0, 2, 3), b=noise(1, 2, 3))
    for name in ("a", "b"):
        _save_map(tmp_path / "conditions", name, wanted)
    _save_map(tmp_path / "maps", "a", wanted)
    measured = measure_segmentation(results, tmp_path / "conditions", maps=tmp_path / "maps", batch_size=5)
    assert measured.summary == {"miou": 1, "macc": 1, "aacc": 1}
    assert len(measured.rows) == 1
    assert "map of result b" in measured.skipped[0]
    _save_map(tmp_path / "maps", "b", wanted[:1])
    with pytest.raises(DataError, match="map of result b. Found: 3 x 1 pixels. Needed: 3 x 2"):
        measure_segmentation(results, tmp_path / "conditions", maps=tmp_path / "maps")


def test_a_model_sees_its_own_map_in_every_size_and_batch(tmp_path: Path) -> None:
    from orthotune.metrics.segmentation import segment
    from orthotune.metrics.vision_model import load

    model = segformer(tmp_path / "model")
    images = {"a": noise(0, 20, 28), "b": noise(1, 33, 17), "c": noise(2, 20, 28)}
    results = save(tmp_path / "results", **images)
    from transformers import AutoModelForSemanticSegmentation

    network, processor = load(model, "cpu", AutoModelForSemanticSegmentation)
    for name, image in images.items():
        (seen,) = segment([image], network, processor)
        assert seen.shape == image.shape[:2]
        # written one higher, as ADE20K's files are: 0 stands for nothing
        _save_map(tmp_path / "conditions", name, seen + 1)
    measured = measure_segmentation(results, tmp_path / "conditions", model=model, reduce_labels=True, batch_size=2)
    assert measured.summary == {"miou": 1, "macc": 1, "aacc": 1}
    assert measured.settings["classes"] == 3
    wrong = measure_segmentation(results, tmp_path / "conditions", model=model, classes=4)
    assert wrong.summary["aacc"] == 0


def test_a_missing_model_is_told_in_words(tmp_path: Path) -> None:
    results = save(tmp_path / "results", a=noise(0))
    _save_map(tmp_path / "conditions", "a", torch.zeros(20, 28))
    with pytest.raises(DataError, match="model .*no/model"):
        measure_segmentation(results, tmp_path / "conditions", model=str(tmp_path / "no/model"))


def test_neighbouring_classes_look_different() -> None:
    shown = colours(torch.arange(150)[None]).astype(int)
    assert abs(shown[0, 1:] - shown[0, :-1]).sum(axis=1).min() > 60
