"""Damaged files are refused with the file's name and what is wrong with it."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from orthotune.errors import AdapterFileError
from orthotune.files.safetensors_file import read_tensors, refuse_non_finite, write_tensors
from orthotune.files.safetensors_header import check_header


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "some.safetensors"
    save_file({"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(5, dtype=torch.int64)}, path)
    return path


def test_whole_file_is_read(file: Path) -> None:
    assert read_tensors(file)["a"].tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("kept", [0, 5, 40])
def test_cut_off_in_the_header(file: Path, kept: int) -> None:
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(AdapterFileError, match=rf"some\.safetensors is cut off.*{kept} bytes"):
        read_tensors(file)


def test_cut_off_in_the_tensors(file: Path) -> None:
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(AdapterFileError, match=rf"cut off.*{len(whole) - 1} bytes.*{len(whole)} bytes"):
        read_tensors(file)


def test_bytes_too_many(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(AdapterFileError, match="after its last tensor"):
        read_tensors(file)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"PK\x03\x04" + b"\xff" * 60, "not a safetensors file"),
        (struct.pack("<Q", 4) + b"{{{{", "header .* cannot be read"),
        (struct.pack("<Q", 8) + b'{"a": 1}', "header .* cannot be read"),
        (struct.pack("<Q", 2) + b"[]", "header .* cannot be read"),
    ],
)
def test_other_things_than_safetensors(file: Path, content: bytes, words: str) -> None:
    file.write_bytes(content)
    with pytest.raises(AdapterFileError, match=words):
        read_tensors(file)


def test_header_that_lies_about_a_shape(file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b"[2,3]", b"[2,4]"))
    with pytest.raises(AdapterFileError, match=r"some\.safetensors is damaged"):
        read_tensors(file)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(AdapterFileError, match="There is no file"):
        read_tensors(tmp_path / "none.safetensors")
    with pytest.raises(AdapterFileError, match="There is no file"):
        read_tensors(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_values_are_named(file: Path, value: float) -> None:
    save_file({"good": torch.ones(2), "bad.weight": torch.tensor([1.0, value])}, file)
    with pytest.raises(AdapterFileError, match=r"some\.safetensors.*NaN.*1 of 2 tensors: bad\.weight"):
        read_tensors(file)
    assert set(read_tensors(file, finite=False)) == {"good", "bad.weight"}


def test_only_the_first_names_are_listed() -> None:
    bad = torch.tensor([float("nan")])
    with pytest.raises(AdapterFileError, match="a, b, c and 2 more"):
        refuse_non_finite({name: bad for name in "abcde"}, "adapter")


def test_the_same_content_is_the_same_file(tmp_path: Path) -> None:
    """safetensors writes the entries of a header in another order each time; files are compared by their hash."""
    tensors = {"b": torch.arange(3.0), "a": torch.ones(2, dtype=torch.bfloat16)}
    metadata = {f"key {number}": f'"\u00e9\n{number}' for number in range(9)}
    files = [write_tensors(tmp_path / name, tensors, metadata).read_bytes() for name in ("one", "two")]
    assert files[0] == files[1]
    assert check_header(tmp_path / "one").metadata == metadata
    assert all(torch.equal(found, tensors[name]) for name, found in read_tensors(tmp_path / "one").items())
