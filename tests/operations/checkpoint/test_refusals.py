"""What cannot be merged is said before a byte is written, and names what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from orthotune.errors import AdapterFileError, MergeError, OutputError
from orthotune.operations.checkpoint import stream
from orthotune.operations.checkpoint.stream import merge_checkpoint
from tests.support.checkpoint_models import llama, save_adapter, save_base

NAME = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("made")
    save_base(llama(), home / "base", shard="6KB")
    save_adapter(home / "base", home / "adapter", target_modules=["q_proj", "down_proj"])
    return home


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    """A base of its own, free to be damaged, and an empty ``out``."""
    save_base(llama(), tmp_path / "base", shard="6KB")
    (tmp_path / "out").mkdir()
    return tmp_path


def _shard_of(base: Path, name: str = NAME) -> Path:
    return base / json.loads((base / "model.safetensors.index.json").read_text())["weight_map"][name]


def _rewrite(path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def _cut_off(base: Path) -> None:
    path = _shard_of(base)
    path.write_bytes(path.read_bytes()[:-3])


def _quantize(base: Path) -> None:
    _rewrite(_shard_of(base), lambda tensors: tensors.update({NAME: tensors[NAME].to(torch.uint8)}))


def _reshape(base: Path) -> None:
    _rewrite(_shard_of(base), lambda tensors: tensors.update({NAME: torch.zeros(16, 20)}))


def _rename(base: Path) -> None:
    new = NAME.replace("weight", "qweight")
    _rewrite(_shard_of(base), lambda tensors: tensors.update({new: tensors.pop(NAME)}))
    path = base / "model.safetensors.index.json"
    path.write_text(path.read_text().replace(NAME, new))


def _lead_away(base: Path) -> None:
    path = base / "model.safetensors.index.json"
    path.write_text(path.read_text().replace(_shard_of(base).name, "../" + _shard_of(base).name))


def _pickle(base: Path) -> None:
    for path in [*base.glob("*.safetensors"), base / "model.safetensors.index.json"]:
        path.unlink()
    (base / "pytorch_model.bin").write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_cut_off, ["is cut off"]),
        (lambda base: _shard_of(base).unlink(), ["There is no file"]),
        (_quantize, [f"'{NAME}' is quantized", "type U8", "1 of 4 parameters"]),
        (_reshape, [f"'{NAME}' has shape (16, 20) in the file, (16, 24) in the model"]),
        (_rename, [f"'{NAME}' has no tensor, but there are {NAME.replace('weight', 'qweight')}"]),
        (_lead_away, ["a shard whose name is not a file name"]),
        (_pickle, ["pytorch_model.bin", "save_pretrained"]),
        (lambda base: (base / "config.json").unlink(), ["is not a saved model"]),
    ],
)
def test_a_damaged_base(made: Path, place: Path, damage: Callable, words: list[str]) -> None:
    damage(place / "base")
    with pytest.raises(AdapterFileError) as caught:
        merge_checkpoint(made / "adapter", place / "base", place / "out")
    assert not [word for word in words if word not in str(caught.value)], caught.value
    assert not list((place / "out").iterdir())


def test_another_base_is_told_with_both_shapes(made: Path, place: Path) -> None:
    save_base(llama(hidden_size=32), place / "other")
    with pytest.raises(AdapterFileError, match=r"\(4, 6\) in the file.*\(8, 6\) for this base"):
        merge_checkpoint(made / "adapter", place / "other", place / "out")
    assert not list((place / "out").iterdir())


def test_a_base_with_nan(made: Path, place: Path) -> None:
    _rewrite(_shard_of(place / "base"), lambda tensors: tensors[NAME].fill_(float("nan")))
    with pytest.raises(MergeError, match=r"into layer 'model.layers.1.mlp.down_proj'. Found: NaN"):
        merge_checkpoint(made / "adapter", place / "base", place / "out")


def test_a_disk_that_is_too_small(made: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1})())
    with pytest.raises(OutputError, match=r"Found: 0.0 GiB of free space"):
        merge_checkpoint(made / "adapter", place / "base", place / "out")
    assert not list((place / "out").iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a file that is always full is Linux's")
def test_a_disk_that_fills_up(made: Path, place: Path) -> None:
    first = min(path.name for path in (place / "base").glob("*.safetensors"))
    (place / "out" / first).symlink_to("/dev/full")
    with pytest.raises(OutputError, match="No space left on device"):
        merge_checkpoint(made / "adapter", place / "base", place / "out")
