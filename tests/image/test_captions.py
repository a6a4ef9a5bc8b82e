"""What is said of each picture: beside it, in tables of every kind, or the same of all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orthotune.errors import DataError
from orthotune.image.data import caption_tables
from orthotune.image.data.captions import dropping, read_examples, with_one_caption
from orthotune.image.data.image_folder import in_memory_image, read_folder
from tests.support.images import noise, save


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures of different sizes, one in a folder below, names in other scripts."""
    save(tmp_path / "data", a=noise(0), é=noise(1, 9, 31))
    save(tmp_path / "data" / "日", b=noise(2, 33, 12))
    return tmp_path / "data"


def lines(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return path


def test_a_text_file_beside_each_picture(folder: Path) -> None:
    for name, text in (("a", "ein Hund\n"), ("é", "\ufeffwritten by\r\n  an editor "), ("日/b", "一つ")):
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    found = read_examples(folder)
    assert [(one.image.name, one.caption) for one in found] == [
        ("a", "ein Hund"), ("é", "written by an editor"), ("日/b", "一つ")
    ]  # fmt: skip
    assert [one.image.height for one in found] == [20, 9, 33]


def test_a_missing_caption_names_its_picture_or_has_a_default(folder: Path) -> None:
    (folder / "a.txt").write_text("a dog")
    (folder / "é.txt").write_text(" \n")
    with pytest.raises(
        DataError, match=r"none for .*é\.png, .*b\.png\. Needed: a \.txt, \.caption or \.json file beside each image"
    ):
        read_examples(folder)
    assert [one.caption for one in read_examples(folder, caption="a thing")] == ["a dog", "a thing", "a thing"]
    assert [one.caption for one in read_examples(folder, caption="")] == ["a dog", "", ""]
    (folder / "a.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"a\.txt. Found: bytes that are not UTF-8 at position 0"):
        read_examples(folder)


@pytest.mark.parametrize("column", ["text", "prompt", "caption"])
def test_metadata_lists_what_is_read(folder: Path, column: str) -> None:
    lines(folder / "metadata.jsonl", {"file_name": "日/b.png", column: "b"}, {"file_name": "a.png", column: "a"})
    found = read_examples(folder)
    assert [(one.image.name, one.caption) for one in found] == [("日/b", "b"), ("a", "a")]
    assert read_examples(folder / "metadata.jsonl") == found


def test_a_picture_may_be_said_twice(folder: Path) -> None:
    table = lines(folder / "t.jsonl", {"file_name": "a.png", "text": "one"}, {"file_name": "a.png", "text": "two"})
    assert [one.caption for one in read_examples(table)] == ["one", "two"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"text": "no picture"}, r"line 2. Found: columns text. Needed: an image under file_name or image"),
        ({"file_name": "a.png", "text": ["x"]}, r"line 2: column 'text'. Found: list \"\['x'\]\". Needed: a text"),
        ({"file_name": 3, "text": "x"}, r"line 2: column 'file_name'. Found: int '3'. Needed: a path"),
        ({"file_name": "a.png"}, r"none for .*line 2"),
    ],
)
def test_a_row_that_is_not_understood_is_named(folder: Path, row: dict[str, Any], words: str) -> None:
    table = lines(folder / "t.jsonl", {"file_name": "a.png", "text": "x"}, row)
    with pytest.raises(DataError, match=words):
        read_examples(table)


def test_rows_of_missing_or_broken_pictures_are_left_out_with_their_captions(folder: Path) -> None:
    (folder / "é.png").write_text("broken")
    rows = [{"file_name": f"{name}.png", "text": name} for name in ("gone", "é", "a")]
    said: list[str] = []
    (only,) = read_examples(lines(folder / "t.jsonl", *rows), say=said.append)
    assert (only.image.name, only.caption) == ("a", "a")
    assert "gone.png (no such file)" in said[0] and "é.png (no complete image" in said[0]
    with pytest.raises(DataError, match="2 of 3 that cannot be read"):
        read_examples(folder / "t.jsonl", broken="refuse")


def parquet(path: Path, pictures: list[Any], **columns: list[Any]) -> Path:
    import pyarrow
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table({"image": pictures, **columns}), path)
    return path


def test_parquet_holds_pictures_and_captions(tmp_path: Path) -> None:
    one, other = (in_memory_image(noise(number, 10 + number, 20), "") for number in (0, 1))
    stored = [{"bytes": one.origin, "path": "ü.png"}, {"bytes": other.origin, "path": None}]
    path = parquet(tmp_path / "data" / "train-00000-of-00001.parquet", stored, text=["x", "y"])
    found = read_examples(path)
    assert [(e.image.name, e.image.height, e.caption) for e in found] == [("ü", 10, "x"), ("row-000001", 11, "y")]
    assert (found[1].image.pixels() == noise(1, 11, 20)).all()
    assert read_examples(tmp_path) == found
    plain = parquet(tmp_path / "plain.parquet", [one.origin, other.origin], prompt=["x", None])
    assert [e.caption for e in read_examples(plain, caption="z")] == ["x", "z"]


def test_parquet_may_name_files(folder: Path) -> None:
    path = parquet(folder / "t.parquet", ["a.png", "é.png"], text=["x", "y"])
    assert [one.image.name for one in read_examples(path)] == ["a", "é"]


def test_datasets_gives_what_the_files_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    pictures = [{"bytes": in_memory_image(noise(number), "").origin, "path": None} for number in range(3)]
    pictures[1]["bytes"] = b"broken"
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    made = datasets.Dataset.from_dict({"image": pictures, "text": ["a", "é", "日"]}, features=features)
    made.to_parquet(tmp_path / "stored" / "train.parquet")
    rows = caption_tables.from_hub(f"{tmp_path / 'stored'}:train")
    assert [row.caption for row in rows] == ["a", "é", "日"]
    assert [row.origin for row in rows] == [picture["bytes"] for picture in pictures]
    assert rows[1].place == f"{tmp_path / 'stored'}:train, row 1"
    with pytest.raises(DataError, match="the hub answers"):
        caption_tables.from_hub(f"{tmp_path / 'stored'}:validation")


def test_what_is_neither_file_nor_data_set_says_so(tmp_path: Path) -> None:
    for source in (tmp_path / "no.jsonl", "./no", str(tmp_path / "no")):
        with pytest.raises(DataError, match="no"):
            read_examples(source)
    with pytest.raises(DataError, match="no such file or directory, and the hub answers"):
        read_examples("nobody/nothing-of-that-name")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"Found: a file. Needed: a folder of images, or a file ending in .jsonl"):
        read_examples(tmp_path / "notes.txt")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(DataError, match="no rows"):
        read_examples(tmp_path / "empty.jsonl")


def test_dropping_is_a_function_of_seed_and_index() -> None:
    drop, again, other = dropping(0.3, 0), dropping(0.3, 0), dropping(0.3, 1)
    first = [drop("x", index) for index in range(2000)]
    assert first == [again("x", index) for index in range(2000)]
    assert first != [other("x", index) for index in range(2000)]
    # Five standard deviations of 2000 draws at 0.3 are 0.051.
    assert abs(first.count("") / 2000 - 0.3) < 0.052
    assert {dropping(0, 0)("x", index) for index in range(99)} == {"x"}
    assert {dropping(1, 0)("x", index) for index in range(99)} == {""}
    with pytest.raises(DataError, match="a share from 0 to 1"):
        dropping(1.1, 0)


def test_one_caption_for_all(folder: Path) -> None:
    assert {one.caption for one in with_one_caption(read_folder(folder), "a sks dog")} == {"a sks dog"}
