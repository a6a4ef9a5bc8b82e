from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from orthotune.errors import DataError
from orthotune.metrics.image_files import find_images, read_labels, read_rgb
from orthotune.metrics.image_pairs import Entry, entries, pair, read_manifest
from orthotune.metrics.measured import Measured, noted, readable, same_size
from tests.support.images import noise, save


def test_names_are_paths_without_suffix_and_other_files_are_passed_over(tmp_path: Path) -> None:
    save(tmp_path / "cat", b=noise(0), a=noise(1))
    (tmp_path / "cat" / "notes.txt").write_text("x")
    save(tmp_path / ".hidden", c=noise(2))
    assert list(find_images(tmp_path)) == ["cat/a", "cat/b"]


def test_folders_without_images_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Found: none. Needed: files that end in .png"):
        find_images(tmp_path)
    with pytest.raises(DataError, match="no such (file|folder)"):
        find_images(tmp_path / "no")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="Found: a file. Needed: a folder"):
        find_images(tmp_path / "file")
    save(tmp_path, a=noise(0))
    Image.fromarray(noise(0)).save(tmp_path / "a.jpg")
    with pytest.raises(DataError, match=r"a\.jpg and a\.png of one name"):
        find_images(tmp_path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tif"])
def test_a_truncated_file_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(noise(0)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=rf"cut\.{suffix}.*no complete image"):
        read_rgb(path)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_what_is_no_image_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.png"):
        read_rgb(path)


def test_transparency_lies_on_white_and_depth_is_not_cut_off(tmp_path: Path) -> None:
    clear = np.zeros((2, 3, 4), dtype=np.uint8)
    clear[0, 0, 3] = 255
    Image.fromarray(clear).save(tmp_path / "clear.png")
    read = read_rgb(tmp_path / "clear.png")
    assert read[0, 0].tolist() == [0, 0, 0]
    assert read[1, 2].tolist() == [255, 255, 255]
    Image.fromarray(np.full((2, 3), 4000, dtype=np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(DataError, match="8 bits per channel"):
        read_rgb(tmp_path / "deep.png")
    assert read_labels(tmp_path / "deep.png").tolist() == [[4000] * 3] * 2


def test_maps_of_classes_have_one_channel(tmp_path: Path) -> None:
    classes = np.array([[0, 7, 255], [1, 2, 3]], dtype=np.uint8)
    Image.fromarray(classes).save(tmp_path / "plain.png")
    Image.fromarray(np.repeat(classes[..., None], 3, axis=2)).save(tmp_path / "grey.png")
    for name in ("plain", "grey"):
        assert (read_labels(tmp_path / f"{name}.png") == classes).all()
    save(tmp_path, coloured=noise(0))
    with pytest.raises(DataError, match="Found: colours"):
        read_labels(tmp_path / "coloured.png")


def test_pairs_are_made_by_name_never_by_position(tmp_path: Path) -> None:
    results = save(tmp_path / "results", a=noise(0), b=noise(1), z=noise(2))
    conditions = tmp_path / "conditions"
    conditions.mkdir()
    for name in ("b", "a", "y"):
        Image.fromarray(noise(3)).save(conditions / f"{name}.jpg")
    found = pair(results, conditions)
    assert [(one.result.name, one.condition.name) for one in found.pairs] == [("a.png", "a.jpg"), ("b.png", "b.jpg")]
    assert found.missing == ["result z.png has no condition", "condition y has no result"]


def test_manifest_pairs_and_speaks_of_prompts(tmp_path: Path) -> None:
    results = save(tmp_path / "results", a=noise(0), b=noise(1))
    conditions = save(tmp_path / "conditions", edges=noise(2))
    lines = ['{"result": "a.png", "condition": "edges.png", "prompt": "a cat"}', "", '{"result": "gone.png"}']
    (results / "manifest.jsonl").write_text("\n".join(lines))
    assert entries(results)[0] == Entry("a.png", "edges.png", "a cat")
    found = pair(results, conditions)
    assert [one.condition.name for one in found.pairs] == ["edges.png"]
    assert found.missing == ["result gone.png is not there"]
    (tmp_path / "other.csv").write_text("result,condition,prompt\nb.png,edges.png,\n")
    assert read_manifest(tmp_path / "other.csv") == [Entry("b.png", "edges.png")]
    assert pair(results, conditions, tmp_path / "other.csv").pairs[0].name == "b"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 1: not JSON"),
        ("[1]", "line 1. Found: a JSON list"),
        ('{"condition": "a.png"}', "Found: no result"),
        ('{"result": "a.png", "promt": "x"}', "promt='x'"),
        ('{"result": 3}', "result=3"),
        ("", "Found: no line"),
    ],
)
def test_a_manifest_that_is_not_understood_names_the_line(tmp_path: Path, line: str, words: str) -> None:
    results = save(tmp_path / "results", a=noise(0))
    (tmp_path / "m.jsonl").write_text(line)
    with pytest.raises(DataError, match="m.jsonl") as caught:
        entries(results, tmp_path / "m.jsonl")
    assert words in str(caught.value)


def test_not_one_pair_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no two of one name"):
        pair(save(tmp_path / "r", a=noise(0)), save(tmp_path / "c", b=noise(0)))


def test_what_cannot_be_read_is_counted_or_refused() -> None:
    def read(item: int) -> int:
        if item == 2:
            raise DataError("image 2.png", got="no whole image")
        return item * 10

    measured = Measured("x")
    assert list(readable([1, 2, 3], read, measured, strict=False)) == [(1, 10), (3, 30)]
    assert measured.skipped == ["image 2.png. Found: no whole image."]
    with pytest.raises(DataError, match=r"2\.png"):
        list(readable([1, 2, 3], read, measured, strict=True))
    with pytest.raises(DataError, match=r"a; b; c and 1 more\. Leave --strict out"):
        noted(["a", "b", "c", "d"], measured, strict=True)
    with pytest.raises(DataError, match="not one image that could be measured"):
        measured.mean_of_rows("iou")


def test_sizes_must_agree_or_be_made_to() -> None:
    with pytest.raises(DataError, match="result a. Found: 28 x 20 pixels. Needed: 14 x 10, as its condition"):
        same_size("a", noise(0), noise(0, 10, 14), resize=False)
    assert same_size("a", noise(0), noise(0, 10, 14), resize=True).shape == (10, 14, 3)
