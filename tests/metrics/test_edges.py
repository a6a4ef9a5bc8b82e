from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from orthotune.errors import DataError
from orthotune.metrics.edges import canny, edge_scores, measure_edges
from tests.support.images import noise, save, step


def test_scores_of_four_pixels_by_hand() -> None:
    wanted, found = np.array([[1, 1, 1, 0, 0, 0]]) > 0, np.array([[1, 1, 0, 1, 0, 0]]) > 0
    # 2 in both, 4 in either, 4 of 6 pixels alike; precision and recall are 2/3
    assert edge_scores(wanted, found) == {"iou": 2 / 4, "accuracy": 4 / 6, "f1": pytest.approx(2 / 3)}
    assert edge_scores(wanted, ~wanted) == {"iou": 0, "accuracy": 0, "f1": 0}
    assert edge_scores(wanted & False, wanted & False) == {"iou": 1, "accuracy": 1, "f1": 1}


def test_scores_are_those_of_torchmetrics() -> None:
    functional = pytest.importorskip("torchmetrics.functional.classification")
    import torch

    one, other = (torch.from_numpy(noise(seed)[..., 0] > 200) for seed in (1, 2))
    theirs = {
        "iou": functional.binary_jaccard_index(other.int(), one.int()),
        "accuracy": functional.binary_accuracy(other.int(), one.int()),
        "f1": functional.binary_f1_score(other.int(), one.int()),
    }
    # theirs are float32
    assert edge_scores(one, other) == pytest.approx({key: float(value) for key, value in theirs.items()}, rel=1e-6)


def test_unrelated_edges_score_chance() -> None:
    one, other = (np.random.default_rng(seed).random((400, 400)) < 0.3 for seed in (0, 1))
    scores = edge_scores(one, other)
    # of density p: IoU p / (2 - p), F1 p, accuracy p² + (1 - p)²; 160,000 pixels leave a spread near 0.002
    assert scores == pytest.approx({"iou": 0.3 / 1.7, "f1": 0.3, "accuracy": 0.58}, abs=0.01)


def test_a_step_has_one_line_of_edges_and_a_faint_one_none() -> None:
    pytest.importorskip("cv2")
    edges = canny(step(5))
    assert edges.sum(axis=1).tolist() == [1] * 10  # one pixel wide, from top to bottom
    assert edges[0].argmax() in (4, 5)
    # Sobel of a step of height h is 4 h: thresholds of 100 and 200 ask for more than 50
    assert not canny(step(5) // 255 * 49).any()
    assert canny(step(5) // 255 * 51).any()
    assert canny(step(5) // 255 * 49, 50, 150).any()


def test_folders_of_results_and_edge_maps(tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    lines = {"same": canny(step(5)), "moved": canny(step(8))}
    maps = {name: np.repeat(edges[..., None] * np.uint8(255), 3, axis=2) for name, edges in lines.items()}
    conditions = save(tmp_path / "conditions", **maps)
    results = save(tmp_path / "results", same=step(5), moved=step(5), alone=step(5))
    (results / "same.png").rename(results / "zzz.png")
    (results / "zzz.png").rename(results / "same.png")
    measured = measure_edges(results, conditions)
    by_name = {row["name"]: row for row in measured.rows}
    assert by_name["same"] == {"name": "same", "iou": 1, "accuracy": 1, "f1": 1}
    # both lines are ten pixels of 140 and share none
    assert by_name["moved"] == {"name": "moved", "iou": 0, "accuracy": pytest.approx(1 - 20 / 140), "f1": 0}
    assert measured.summary == {"iou": 0.5, "accuracy": pytest.approx(1 - 10 / 140), "f1": 0.5}
    assert measured.skipped == ["result alone.png has no condition"]
    assert [len(pictures) for _, pictures in measured.sheet] == [3, 3]
    with pytest.raises(DataError, match="alone"):
        measure_edges(results, conditions, strict=True)


def test_a_photograph_is_not_taken_for_a_map_of_edges(tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    photos = save(tmp_path / "photos", a=noise(0))
    with pytest.raises(DataError, match=r"grey pixels.*--conditions-are photos"):
        measure_edges(photos, photos)
    assert measure_edges(photos, photos, conditions_are="photos").summary == {"iou": 1, "accuracy": 1, "f1": 1}
