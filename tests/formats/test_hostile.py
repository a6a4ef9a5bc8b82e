"""Damaged, altered and malicious files end in words: nothing is executed, and memory follows the size of the file."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from orthotune.errors import AdapterFileError, OrthotuneError
from orthotune.formats import read_adapter
from orthotune.formats.adapter_file import MOST_TENSORS
from tests.support.producers import FIXTURES, Produced, produced

#: One adapter of each format and layout.
SAMPLES = [case for case in produced() if case.folder.name in (
    "plain", "split", "m2_bs4", "m1_bs4", "boft_rescaled", "diag_rescaled", "scaled", "block_share", "control_conv",
    "control_linear_shared", "oft-db_linear", "oft-t2i_linear_shared", "coft", "ragged_r5",
)]  # fmt: skip
FAST = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


def _weights(case: Produced) -> Path:
    return case.adapter / "adapter_model.safetensors" if case.adapter.is_dir() else case.adapter


def _readable_or_worded(path: Path) -> None:
    """Reading ends in a state that can be applied, or in one of our errors."""
    try:
        state = read_adapter(path)
        assert state.parameters >= 0
        for name in (*state.layers, *state.transforms):
            for shape in ((16, 24), (12, 8, 3, 3)):
                with suppress(OrthotuneError):  # the weight is another one
                    assert state.transform(name).apply(torch.ones(shape)).shape == shape
    except OrthotuneError as error:
        assert len(str(error)) < 2000


def _rewritten(case: Produced, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / _weights(case).name
        save_file(change(load_file(_weights(case))), path)
        if case.adapter.is_dir():
            shutil.copy(case.adapter / "adapter_config.json", folder)
        _readable_or_worded(Path(folder) if case.adapter.is_dir() else path)


@FAST
@given(case=st.sampled_from(SAMPLES), data=st.data())
def test_bytes_that_are_missing_or_altered(case: Produced, data: st.DataObject) -> None:
    raw = bytearray(_weights(case).read_bytes())
    if data.draw(st.booleans(), "cut off"):
        raw = raw[: data.draw(st.integers(0, len(raw) - 1))]
    else:
        header = 8 + struct.unpack("<Q", raw[:8])[0]
        for _ in range(data.draw(st.integers(1, 4))):
            end = header if data.draw(st.booleans(), "in the header") else len(raw)
            raw[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    with TemporaryDirectory() as folder:
        path = Path(folder) / _weights(case).name
        path.write_bytes(raw)
        if case.adapter.is_dir():
            shutil.copy(case.adapter / "adapter_config.json", folder)
        _readable_or_worded(path)


@FAST
@given(case=st.sampled_from(SAMPLES), data=st.data())
def test_tensors_that_changed_places_shapes_types_or_names(case: Produced, data: st.DataObject) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        names = list(tensors)
        for _ in range(data.draw(st.integers(1, 3))):
            name, other = data.draw(st.sampled_from(names)), data.draw(st.sampled_from(names))
            tensor = tensors.get(name, torch.zeros(1))
            how = data.draw(st.sampled_from(list(CHANGES)))
            if how == "swap":
                tensors[name], tensors[other] = tensors.get(other, tensor), tensor
            elif how == "drop":
                tensors.pop(name, None)
            elif how == "rename":
                tensors[data.draw(st.text(max_size=12)) + "." + name.rpartition(".")[2]] = tensors.pop(name, tensor)
            else:
                tensors[name] = CHANGES[how](tensor)
        return {name: tensor.clone().contiguous() for name, tensor in tensors.items() if name != "__metadata__"}

    _rewritten(case, change)


CHANGES: dict[str, Any] = {
    "swap": None,
    "drop": None,
    "rename": None,
    "flat": torch.flatten,
    "mirrored": lambda t: t.mT if t.dim() > 1 else t,
    "deeper": lambda t: t.unsqueeze(0),
    "shallower": lambda t: t[0] if t.dim() and t.shape[0] else t,
    "cropped": lambda t: t[..., :-1] if t.dim() else t,
    "empty": lambda t: t.flatten()[:0],
    "huge": lambda t: t.float() * 1e30 if t.is_floating_point() else t,
    "zero": torch.zeros_like,
    "half": lambda t: t.half() if t.is_floating_point() else t,
    "float8": lambda t: t.to(torch.float8_e4m3fn) if t.is_floating_point() else t,
    "whole": lambda t: t.long(),
    "complex": lambda t: t.to(torch.complex64),
    "nan": lambda t: t.float() * float("nan") if t.is_floating_point() else t,
}


@FAST
@given(case=st.sampled_from([c for c in SAMPLES if c.adapter.is_dir()]), data=st.data())
def test_configs_that_hold_anything(case: Produced, data: st.DataObject) -> None:
    config = json.loads((case.adapter / "adapter_config.json").read_text())
    anything = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    values = anything | st.lists(anything, max_size=2) | st.dictionaries(st.text(max_size=3), anything, max_size=2)
    known = [*config, "scaled", "side", "magnitude", "coft", "eps", "r", "num_cayley_neumann_terms", "peft_version"]
    for _ in range(data.draw(st.integers(1, 3))):
        config[data.draw(st.sampled_from(known))] = data.draw(values)
    with TemporaryDirectory() as folder:
        shutil.copy(_weights(case), folder)
        (Path(folder) / "adapter_config.json").write_text(json.dumps(config))
        _readable_or_worded(Path(folder))


@pytest.mark.parametrize(("one", "two"), [
    ("kohya-oft-2023-10/plain", "onetrainer-oftv2-2026-08/plain"),
    ("lycoris-3.0.0/diag_plain", "kohya-oft-2023-10/plain"),
    ("lycoris-2.0.0/diag_plain", "lycoris-3.0.0/boft_plain"),
    ("zeju-oft/control_linear", "zeju-oft/oft-db_linear"),
])  # fmt: skip
def test_mixed_formats_are_refused_with_what_was_found(one: str, two: str, tmp_path: Path) -> None:
    tensors = {}
    for name in (one, two):
        tensors |= load_file(sorted((FIXTURES / name).glob("adapter*.safetensors"))[0])
    save_file(tensors, tmp_path / "mixed.safetensors")
    with pytest.raises(AdapterFileError, match=r"mixed\.safetensors mixes formats.* and "):
        read_adapter(tmp_path / "mixed.safetensors")


@pytest.mark.parametrize("name", ["x.lora_down.weight", "x.lokr_w1", "x.dora_scale", "lora_unet_blk_lin.dora_scale"])
def test_tensors_of_other_methods_are_refused(name: str, tmp_path: Path) -> None:
    tensors = load_file(FIXTURES / "lycoris-3.0.0" / "diag_plain" / "adapter.safetensors")
    save_file(tensors | {name: torch.ones(2, 2)}, tmp_path / "a.safetensors")
    with pytest.raises(AdapterFileError, match="mixes rotations with tensors of another method"):
        read_adapter(tmp_path / "a.safetensors")


def test_what_is_no_adapter_is_named(tmp_path: Path) -> None:
    save_file({"model.weight": torch.ones(2)}, tmp_path / "a.safetensors")
    with pytest.raises(AdapterFileError, match=r"not an adapter that orthotune knows.*model\.weight"):
        read_adapter(tmp_path / "a.safetensors")


def test_nan_is_named(tmp_path: Path) -> None:
    tensors = load_file(FIXTURES / "kohya-oft-2023-10" / "plain" / "adapter.safetensors")
    tensors["oft_unet_blk_lin.oft_blocks"][0, 0, 0] = float("nan")
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(AdapterFileError, match=r"NaN.*oft_unet_blk_lin\.oft_blocks"):
        read_adapter(tmp_path / "a.safetensors")


def _raw(path: Path, header: bytes, body: bytes = b"") -> Path:
    path.write_bytes(struct.pack("<Q", len(header)) + header + body)
    return path


def test_more_tensors_than_any_adapter_has(tmp_path: Path) -> None:
    entry = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    header = "{" + ",".join(f'"{i}.oft_R.weight":{entry}' for i in range(MOST_TENSORS + 1)) + "}"
    with pytest.raises(AdapterFileError, match=f"{MOST_TENSORS + 1} tensors"):
        read_adapter(_raw(tmp_path / "a.safetensors", header.encode()))


def test_a_header_larger_than_any_adapter_needs_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", 90_000_000))  # a million names; the file need not even hold them
    with pytest.raises(AdapterFileError, match="a header of 90000000 bytes"):
        read_adapter(path)


def test_a_header_nested_without_end(tmp_path: Path) -> None:
    with pytest.raises(AdapterFileError, match="header .* cannot be read"):
        read_adapter(_raw(tmp_path / "a.safetensors", b"[" * 100_000))


class _Runs:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".ckpt"])
def test_code_in_a_pickle_is_not_run(suffix: str, tmp_path: Path) -> None:
    mark, path = tmp_path / "ran", tmp_path / f"a{suffix}"
    torch.save({"x.R": torch.zeros(2, 2, 2), "y": _Runs(mark)}, path)
    with pytest.raises(AdapterFileError, match="holds more than tensors.*No code in it was run") as refused:
        read_adapter(path)
    assert "Found: a call of " in str(refused.value)
    assert "can still be loaded" not in str(refused.value)  # torch's advice on how to run it all the same
    path.write_bytes(pickle.dumps(_Runs(mark)))
    with pytest.raises(AdapterFileError, match="no pickle that torch wrote"):
        read_adapter(path)
    assert not mark.exists()


def test_a_pickle_of_tensors_is_read(tmp_path: Path) -> None:
    case = FIXTURES / "zeju-oft" / "oft-db_linear" / "adapter.safetensors"
    torch.save(load_file(case), tmp_path / "pytorch_oft_weights.bin")
    expected = read_adapter(case)
    for path in (tmp_path / "pytorch_oft_weights.bin", tmp_path):
        found = read_adapter(path)
        assert found.format == "oft-db"
        name = next(iter(expected.layers))
        assert torch.equal(found.layers[name].rotation(), expected.layers[name].rotation())


def test_a_compressed_archive_is_not_unpacked(tmp_path: Path) -> None:
    torch.save({"x": torch.zeros(1000, 1000)}, tmp_path / "plain.pt")
    bomb = tmp_path / "bomb.pt"
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    assert bomb.stat().st_size < 20_000
    with pytest.raises(AdapterFileError, match="compressed archive"):
        read_adapter(bomb)


def test_a_view_that_is_larger_than_its_file_is_refused(tmp_path: Path) -> None:
    torch.save({"x.R": torch.zeros(1).expand(1 << 20, 1 << 10)}, tmp_path / "a.pt")
    with pytest.raises(AdapterFileError, match="larger than the file"):
        read_adapter(tmp_path / "a.pt")


@pytest.mark.parametrize("found", [[torch.ones(1)], {"a": 1}, torch.ones(3), {"a": torch.ones(2).to_sparse()}, {1: 2}])
def test_pickles_of_other_things_are_refused(found: object, tmp_path: Path) -> None:
    torch.save(found, tmp_path / "a.pt")
    with pytest.raises(AdapterFileError, match="pickle"):
        read_adapter(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "case",
    ["peft-0.21.2-oft/exact", "peft-0.15.2-oft/plain", "peft-0.13.2-oft/plain", "peft-0.21.2-boft/m2_bs4"],
)
def test_lora_beside_the_rotations_of_peft_is_not_dropped(case: str, tmp_path: Path) -> None:
    """What is read of such a folder would be merged without its LoRA, and converted "without loss"."""
    folder = Path(shutil.copytree(FIXTURES / case, tmp_path / "adapter"))
    weights = folder / "adapter_model.safetensors"
    whole = load_file(weights) | {"base_model.model.head.a1.weight": torch.zeros(2, 2)}  # saved whole
    save_file(whole, weights)
    assert set(read_adapter(folder).other) == {"head.a1.weight"}
    save_file(whole | {"base_model.model.blk.lin.lora_A.weight": torch.zeros(2, 8)}, weights)
    with pytest.raises(AdapterFileError, match="mixes rotations with tensors of another method"):
        read_adapter(folder)
