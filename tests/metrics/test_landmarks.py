from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orthotune.errors import ConfigError, DataError
from orthotune.metrics.landmark_detectors import detector
from orthotune.metrics.landmarks import measure_landmarks, point_error, read_points
from tests.support.images import noise, save

FACE = np.stack([np.arange(68) % 20, np.arange(68) // 20 * 4], axis=1).astype(float)
SHIFT = np.array([3.0, 4.0])


def _write(path: Path, **points: np.ndarray) -> Path:
    path.write_text(json.dumps({name: array.tolist() for name, array in points.items()}))
    return path


def test_a_shift_is_its_own_length() -> None:
    assert point_error(FACE, FACE) == 0
    assert point_error(FACE, FACE + SHIFT) == pytest.approx(5)
    moved = FACE.copy()
    moved[0] += [0, 68]  # one point of 68 by 68 pixels
    assert point_error(FACE, moved) == pytest.approx(1)


def test_unrelated_points_are_as_far_as_points_in_a_square() -> None:
    one, other = (np.random.default_rng(seed).random((50_000, 2)) for seed in (0, 1))
    # the mean distance between two points of the unit square; the spread of 50,000 is near 0.001
    assert point_error(one, other) == pytest.approx(0.5214, abs=0.005)


def test_given_points_need_no_detector(tmp_path: Path) -> None:
    results = save(tmp_path / "results", a=noise(0), b=noise(1), c=noise(2))
    wanted = _write(tmp_path / "wanted.json", a=FACE, b=FACE)
    found = _write(tmp_path / "found.json", a=FACE + SHIFT)
    measured = measure_landmarks(results, wanted, found=found)
    assert measured.rows == [{"name": "a", "error_pixels": pytest.approx(5)}]
    assert measured.summary == {"error_pixels": pytest.approx(5)}
    assert measured.skipped[0] == "result c.png has no condition"
    assert "points of result b" in measured.skipped[1]
    assert [picture.shape for picture in measured.sheet[0][1]] == [(20, 28, 3)] * 3


def test_a_detector_of_ones_own_sees_photographs_and_results(tmp_path: Path) -> None:
    def brightest(image: Any) -> Any:
        if image.max() == 0:
            return None
        row, column = np.unravel_index(image[..., 0].argmax(), image.shape[:2])
        return np.full((3, 2), [column, row])

    def dot(column: int, row: int) -> np.ndarray:
        image = np.zeros((16, 24, 3), dtype=np.uint8)
        image[row, column] = 255
        return image

    photos = save(tmp_path / "photos", a=dot(2, 3), b=dot(2, 3), none=dot(2, 3))
    results = save(tmp_path / "results", a=dot(2, 3), b=dot(8, 11), none=dot(0, 0) * 0)
    measured = measure_landmarks(results, photos, detect=brightest, points=3)
    assert [row["error_pixels"] for row in measured.rows] == [0, pytest.approx(10)]  # 6 and 8 pixels off
    assert measured.skipped == ["result none. Found: no face."]
    with pytest.raises(DataError, match="no face"):
        measure_landmarks(results, photos, detect=brightest, points=3, strict=True)
    save(tmp_path / "results", a=noise(0, 16, 25))
    with pytest.raises(DataError, match="result a. Found: 25 x 16 pixels. Needed: 24 x 16"):
        measure_landmarks(results, photos, detect=brightest, points=3)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "points.json, line 1: not JSON"),
        ("[]", "Found: a JSON list. Needed: {"),
        ("{}", "no names"),
        ('{"a": [[1, 2]]}', r"points.json, a. Found: shape \(1, 2\). Needed: 68 pairs"),
        ('{"a": "x"}', "68 pairs"),
        ('{"a": [[NaN, 2]]}', "68 pairs"),
    ],
)
def test_points_that_are_none_name_the_image(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "points.json").write_text(content)
    with pytest.raises(DataError, match=words):
        read_points(tmp_path / "points.json")


@pytest.mark.parametrize("name", ["dlib", "no.such.module:f", "math:nothing", "math:pi"])
def test_an_unknown_detector_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"detector {name}"):
        detector(name)
