"""Pictures with control pictures: paired by name, by a table, or made; pairs that are none are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from orthotune.errors import ConfigError, DataError
from orthotune.image.control.conditions.registry import condition
from orthotune.image.control.data import control_examples
from tests.support.images import noise, save

DEPTH, LANDMARK = condition("depth"), condition("landmark")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    save(tmp_path / "p", a=noise(0, 20, 28), é=noise(1, 31, 17))
    return tmp_path / "p"


def test_pairs_are_made_by_name_never_by_position(pictures: Path, tmp_path: Path) -> None:
    maps = tmp_path / "maps"
    maps.mkdir()
    for name, shape in (("é", (31, 17)), ("0", (5, 5)), ("a", (20, 28))):
        Image.fromarray(noise(2, *shape)).save(maps / f"{name}.bmp")
    found = control_examples(pictures, DEPTH, maps, caption="x")
    assert [(one.image.name, one.condition and one.condition.name) for one in found] == [("a", "a"), ("é", "é")]
    assert found[0].condition is not None and (found[0].condition.pixels() == noise(2, 20, 28)).all()


def test_control_pictures_may_lie_in_the_folder_of_the_pictures(pictures: Path) -> None:
    save(pictures / "maps", a=noise(2, 20, 28), é=noise(3, 31, 17))
    assert len(control_examples(pictures, DEPTH, pictures / "maps", caption="x")) == 2


def test_a_missing_partner_is_named(pictures: Path, tmp_path: Path) -> None:
    maps = save(tmp_path / "maps", a=noise(2, 20, 28))
    with pytest.raises(DataError, match=r"control images in .*maps. Found: none for é, of 2 images"):
        control_examples(pictures, DEPTH, maps, caption="x")
    with pytest.raises(DataError, match="no such (file|folder)"):
        control_examples(pictures, DEPTH, tmp_path / "no", caption="x")


def test_a_partner_of_another_size_is_named_with_both_sizes(pictures: Path, tmp_path: Path) -> None:
    maps = save(tmp_path / "maps", a=noise(2, 20, 28), é=noise(2, 17, 31))
    with pytest.raises(DataError, match=r"1 of 2 control images. Found: é \(31 x 17 instead of 17 x 31\)"):
        control_examples(pictures, DEPTH, maps, caption="x")


def _table(folder: Path, *rows: dict[str, str]) -> Path:
    path = folder / "metadata.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


@pytest.mark.parametrize("column", ["conditioning_image", "conditioning_image_file_name"])
def test_a_table_pairs(pictures: Path, column: str) -> None:
    save(pictures / "c", one=noise(2, 20, 28))
    _table(pictures, {"file_name": "a.png", column: "c/one.png", "text": "x"})
    (found,) = control_examples(pictures, DEPTH)
    assert found.condition is not None and found.caption == "x"


def test_a_table_with_a_hole_names_the_line(pictures: Path) -> None:
    save(pictures / "c", one=noise(2, 20, 28))
    rows = [{"file_name": "a.png", "conditioning_image": "c/one.png", "text": "x"}, {"file_name": "é.png", "text": "y"}]
    _table(pictures, *rows)
    with pytest.raises(DataError, match=r"none for .*metadata.jsonl, line 2, of 2 images"):
        control_examples(pictures, DEPTH)
    _table(pictures, rows[0] | {"conditioning_image": "c/gone.png"})
    with pytest.raises(DataError, match=r"control images of .*no file at .*gone.png \(.*line 1\)"):
        control_examples(pictures, DEPTH)


def test_without_control_pictures_they_are_made_or_asked_for(pictures: Path) -> None:
    found = control_examples(pictures, condition("sketch"), caption="x")
    assert [one.condition for one in found] == [None, None]
    with pytest.raises(ConfigError, match=r"condition depth of .*Found: no control images.*Pass conditions=FOLDER"):
        control_examples(pictures, DEPTH, caption="x")


def test_a_broken_control_picture_takes_its_picture_with_it(pictures: Path, tmp_path: Path) -> None:
    maps = save(tmp_path / "maps", a=noise(2, 20, 28))
    (maps / "é.png").write_text("broken")
    said: list[str] = []
    assert [one.image.name for one in control_examples(pictures, DEPTH, maps, caption="x", say=said.append)] == ["a"]
    assert "among the control images" in said[0] and "é" in said[0]
    with pytest.raises(DataError, match="1 of 2 that cannot be read"):
        control_examples(pictures, DEPTH, maps, caption="x", broken="refuse")


def test_points_in_a_file_become_maps(pictures: Path, tmp_path: Path) -> None:
    points = np.linspace(2, 15, 136).reshape(68, 2)
    file = tmp_path / "points.json"
    file.write_text(json.dumps({"a": points.tolist(), "é": (points + 1).tolist()}))
    found = control_examples(pictures, LANDMARK, file, caption="x")
    for one in found:
        assert one.condition is not None and one.condition.pixels().any()
        assert (one.condition.height, one.condition.width) == (one.image.height, one.image.width)
    file.write_text(json.dumps({"a": points.tolist()}))
    with pytest.raises(DataError, match="none for é"):
        control_examples(pictures, LANDMARK, file, caption="x")
    drawn = save(tmp_path / "drawn", a=noise(2, 20, 28), é=noise(3, 31, 17))
    assert len(control_examples(pictures, LANDMARK, drawn, caption="x")) == 2
