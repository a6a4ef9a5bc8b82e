"""Class pictures: drawn once, resumed after a cut, never mixed with those of other settings or of the user."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from orthotune.errors import DataError, OutputError
from orthotune.image.data.class_images import MANIFEST, class_images
from orthotune.image.families.family import Family
from orthotune.image.families.registry import family_of
from tests.support.images import noise, save
from tests.support.tiny_pipelines import tiny_pipeline


class Cut(Exception):
    """Somebody pulled the plug."""


class Drawing:
    """A family that counts what it draws and stops after so many pictures."""

    def __init__(self, family: Family, stop_after: int = 999) -> None:
        self.family, self.drawn, self.stop_after = family, 0, stop_after

    def generate(self, prompts: list[str], seeds: list[int], **options: Any) -> Any:
        if self.drawn >= self.stop_after:
            raise Cut
        self.drawn += len(prompts)
        return self.family.generate(prompts, seeds, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.family, name)


@pytest.fixture(scope="module")
def family() -> Family:
    return family_of(tiny_pipeline("sd15"))


def draw(family: Any, folder: Path, count: int = 3, **options: Any) -> list[Any]:
    given = {"model": "tiny", "steps": 1, "batch_size": 2, "say": lambda _: None} | options
    return class_images(family, folder, given.pop("prompt", "a digit"), count, **given)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


def test_missing_pictures_are_drawn_and_found_again(family: Family, tmp_path: Path) -> None:
    drawing, folder = Drawing(family), tmp_path / "below" / "class"
    found = draw(drawing, folder)
    assert [one.name for one in found] == ["00000", "00001", "00002"] and drawing.drawn == 3
    assert len({one.content() for one in found}) == 3
    said = json.loads((folder / MANIFEST).read_text())
    assert said["model"] == "tiny" and said["prompt"] == "a digit" and said["height"] == family.native_size
    assert draw(drawing, folder) == found and drawing.drawn == 3
    assert draw(drawing, folder, count=2) == found[:2] and drawing.drawn == 3
    assert draw(drawing, folder, count=5)[:3] == found and drawing.drawn == 5


def test_a_cut_off_generation_goes_on_and_ends_the_same(family: Family, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    draw(family, whole, count=5)
    with pytest.raises(Cut):
        draw(Drawing(family, stop_after=2), cut, count=5)
    assert sorted(contents(cut)) == ["00000.png", "00001.png"]
    (cut / "00000.png").unlink()
    rest = Drawing(family)
    draw(rest, cut, count=5)
    assert rest.drawn == 4 and contents(cut) == contents(whole)
    assert not list(cut.glob("*.part"))


@pytest.mark.parametrize(
    "change", [{"model": "other"}, {"prompt": "a red digit"}, {"seed": 1}, {"steps": 2}, {"guidance": 2.0}]
)
def test_other_settings_are_refused_or_drawn_anew(family: Family, tmp_path: Path, change: dict[str, Any]) -> None:
    draw(family, tmp_path / "c")
    before = contents(tmp_path / "c")
    (key,) = change
    with pytest.raises(DataError, match=rf"images made with {key} .* instead of .*regenerate"):
        draw(family, tmp_path / "c", **change)
    assert contents(tmp_path / "c") == before
    said: list[str] = []
    draw(family, tmp_path / "c", other="regenerate", say=said.append, **change)
    assert "generated again" in said[0]
    again = contents(tmp_path / "c")
    assert again.keys() == before.keys() and (key == "model" or again != before)
    draw(family, tmp_path / "c", **change)


def test_pictures_of_one_s_own_are_used_and_never_added_to(family: Family, tmp_path: Path) -> None:
    save(tmp_path / "own", dog=noise(0), cat=noise(1))
    said: list[str] = []
    drawing = Drawing(family)
    assert [one.name for one in draw(drawing, tmp_path / "own", count=9, say=said.append)] == ["cat", "dog"]
    assert drawing.drawn == 0 and len(list((tmp_path / "own").iterdir())) == 2
    assert "2 class images of yours instead of 9" in said[0]


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_too_little_disk_is_said_before_anything_is_drawn(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9 - 10**6, 10**6))
    drawing = Drawing(family)
    with pytest.raises(
        OutputError, match=r"2000 class images in .*Found: 1.0 MB free. Needed: up to 1.6 MB. Free some space"
    ):
        draw(drawing, tmp_path / "c", count=2000, height=16, width=16)
    assert drawing.drawn == 0 and not (tmp_path / "c").exists()


def test_what_cannot_be_used_is_worded(family: Family, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="count=0"):
        draw(family, tmp_path / "c", count=0)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="class images in"):
        draw(family, tmp_path / "file" / "c")
    draw(family, tmp_path / "c", count=1)
    (tmp_path / "c" / "00000.png").write_text("broken")
    with pytest.raises(DataError, match=r"00000.png \(no complete image"):
        draw(family, tmp_path / "c", count=1)
    (tmp_path / "c" / MANIFEST).write_text("{")
    with pytest.raises(DataError, match="class images .*line 1: not JSON.*Remove the folder"):
        draw(family, tmp_path / "c", count=1)
