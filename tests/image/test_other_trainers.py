"""Folders of images of other trainers are understood, or what is not is named and counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from orthotune.errors import DataError
from orthotune.image.data.captions import read_caption_rows, read_examples
from orthotune.image.data.other_trainers import lacking, of_subject, repeated, words_of


def _image(path: Path, **save: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), "red").save(path, **save)
    return path


def test_folders_with_repeats_are_seen_in_their_ratio(tmp_path: Path) -> None:
    for name in ("10_sks cat/0.png", "10_sks cat/1.png", "20_sks dog/2.png"):
        _image(tmp_path / name)
    (tmp_path / "20_sks dog" / "2.txt").write_text("a sks dog, running")
    said: list[str] = []
    found = read_examples(tmp_path, say=said.append)
    assert [one.caption for one in found] == ["sks cat", "sks cat", "a sks dog, running", "a sks dog, running"]
    assert said == ["Folders with repeats, as of kohya-ss: 10_sks cat (1 of each image), 20_sks dog (2 of each image)."]


def test_images_of_the_class_are_not_the_subject(tmp_path: Path) -> None:
    for name in ("10_sks cat/0.png", "1_cat/1.png", "1_cat/2.png"):
        _image(tmp_path / name)
    said: list[str] = []
    rows = of_subject(read_caption_rows(tmp_path), "sks", said.append)
    assert [row.name for row in rows] == ["10_sks cat/0"] and "1_cat (2 images)" in said[0]
    with pytest.raises(DataError, match="one whose name has the word 'ohwx'"):
        of_subject(read_caption_rows(tmp_path), "ohwx", said.append)


def test_another_layout_is_left_alone(tmp_path: Path) -> None:
    for name in ("10_sks cat/0.png", "1.png"):
        _image(tmp_path / name)
    rows, said = read_caption_rows(tmp_path), list[str]()
    assert repeated(rows, said.append) == rows == of_subject(rows, "sks", print)
    assert said == ["The repeats of 10_sks cat, as of kohya-ss, are not used: 1 images are in no such folder, 1."]


def test_a_year_is_a_name(tmp_path: Path) -> None:
    _image(tmp_path / "2019_paris" / "0.png")
    rows, said = read_caption_rows(tmp_path), list[str]()
    assert repeated(rows, said.append) == rows and words_of("2019_paris") == "2019_paris"
    assert len(said) == 1 and said[0].startswith("The numbers of 2019_paris are read as a part of the name")


def test_no_repeats_are_refused(tmp_path: Path) -> None:
    _image(tmp_path / "0_cat" / "0.png")
    with pytest.raises(DataError, match="0 in 0_cat"):
        repeated(read_caption_rows(tmp_path), print)


@pytest.mark.parametrize(
    ("suffix", "content", "caption"),
    [
        (".txt", " 1girl,\n hat ", "1girl, hat"),
        (".caption", "a cat", "a cat"),
        (".json", json.dumps({"caption": "a cat"}), "a cat"),
        (".json", json.dumps({"tags": ["1girl", "hat"]}), "1girl, hat"),
        (".txt", "", None),
    ],
)
def test_captions_beside_images(suffix: str, content: str, caption: str | None, tmp_path: Path) -> None:
    _image(tmp_path / "0.png").with_suffix(suffix).write_text(content)
    assert read_caption_rows(tmp_path)[0].caption == caption


@pytest.mark.parametrize("content", ["{", "{}", "[1]", '{"caption": 3}'])
def test_a_json_file_without_a_caption_is_refused(content: str, tmp_path: Path) -> None:
    _image(tmp_path / "0.png").with_suffix(".json").write_text(content)
    with pytest.raises(DataError, match=r"caption .*0\.json"):
        read_caption_rows(tmp_path)


def test_formats_that_are_not_read_are_named_and_counted(tmp_path: Path) -> None:
    for name in ("IMG_1.HEIC", "b.gif", "c.avif"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DataError, match=r"none, and 3 of other formats: IMG_1\.HEIC, b\.gif, c\.avif"):
        read_examples(tmp_path, caption="a cat")
    _image(tmp_path / "0.png")
    said: list[str] = []
    assert len(read_examples(tmp_path, caption="a cat", say=said.append)) == 1
    assert said[0].startswith("3 files in ") and "IMG_1.HEIC, b.gif, c.avif. Save them as JPEG or PNG." in said[0]


def test_rotation_of_cameras_and_transparency(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    _image(tmp_path / "0.jpg", exif=exif)
    Image.new("RGBA", (6, 4), (255, 0, 0, 0)).save(tmp_path / "1.png")
    turned, clear = read_examples(tmp_path, caption="a cat")
    assert (turned.image.height, turned.image.width) == (6, 4) and turned.image.pixels().shape == (6, 4, 3)
    assert (clear.image.pixels() == 255).all()


def test_captions_without_the_word_are_counted() -> None:
    assert lacking([("0", "a sks, cat"), ("1", "sks")], "sks") == []
    (message,) = lacking([(str(n), "cat") for n in range(3)] + [("4", "sks")], "sks")
    assert message.startswith("3 of 4 captions do not hold 'sks'") and "0, 1, 2" in message


def test_captions_of_several_lines_are_named(tmp_path: Path) -> None:
    for name, caption in (("0", "a cat\nindoors\n"), ("1", "a cat\n\n")):
        _image(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(caption)
    said: list[str] = []
    found = read_examples(tmp_path, say=said.append)
    assert [one.caption for one in found] == ["a cat indoors", "a cat"]
    assert len(said) == 1 and "1 captions have several lines" in said[0] and "0.txt" in said[0]
