"""The encoder of control pictures: zero when fresh, fitted to its layer, the same after saving; wrong files refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from orthotune.errors import AdapterFileError, ConfigError, DataError
from orthotune.image.control.hint_encoder import CONFIG, WEIGHTS, HintEncoder, HintShape, load_hint_encoder


def _encoder(channels: int = 6, cell: int = 4, signal: str | None = "segm") -> HintEncoder:
    encoder = HintEncoder(HintShape("stable-diffusion", "conv_in", channels, cell, signal))
    torch.nn.init.normal_(encoder.head.weight)
    return encoder


@pytest.mark.parametrize(("cell", "height", "width"), [(1, 5, 7), (4, 12, 8), (6, 18, 12), (8, 24, 40), (16, 32, 16)])
def test_one_position_per_cell_and_zero_when_fresh(cell: int, height: int, width: int) -> None:
    encoder = HintEncoder(HintShape("any", "entry", channels=5, cell=cell))
    features = encoder(torch.rand(3, 3, height, width))
    assert features.shape == (3, 5, height // cell, width // cell)
    assert not features.any()


def test_gradient_reaches_every_layer_once_the_last_is_not_zero() -> None:
    encoder = _encoder()
    encoder(torch.rand(2, 3, 8, 12)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in encoder.parameters())


def test_a_fresh_encoder_learns_through_its_last_layer() -> None:
    encoder = HintEncoder(HintShape("any", "entry", channels=5, cell=4))
    (encoder(torch.rand(2, 3, 8, 12)) - 1).square().sum().backward()
    assert encoder.head.weight.grad is not None
    assert encoder.head.weight.grad.any()


def test_it_is_light() -> None:
    # Beside Stable Diffusion 1.5's 860 million: well under one part in five hundred.
    parameters = sum(p.numel() for p in HintEncoder(HintShape("stable-diffusion", "conv_in", 320, 8)).parameters())
    assert parameters < 500_000


def test_saved_and_loaded_it_gives_the_same_features(tmp_path: Path) -> None:
    encoder, hints = _encoder(), torch.rand(2, 3, 8, 12)
    encoder.save(tmp_path)
    before = torch.get_rng_state()
    loaded = load_hint_encoder(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert loaded.shape == encoder.shape
    assert torch.equal(loaded(hints), encoder(hints))


@pytest.mark.parametrize("wrong", [(3, 8, 8), (1, 4, 8, 8), (1, 3, 10, 8)])
def test_a_picture_of_another_shape_is_refused(wrong: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="multiples of 4 pixels"):
        _encoder()(torch.zeros(wrong))


def test_a_folder_without_an_encoder_says_which_folder_is_meant(tmp_path: Path) -> None:
    with pytest.raises(AdapterFileError, match="no file hint_encoder.json"):
        load_hint_encoder(tmp_path)
    _encoder().save(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(AdapterFileError, match="train control"):
        load_hint_encoder(tmp_path)


def test_the_folder_of_a_run_says_which_of_its_folders_is_meant(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    _encoder().save(tmp_path / "adapter")
    with pytest.raises(AdapterFileError, match=r"Pass .*adapter"):
        load_hint_encoder(tmp_path)


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    encoder = _encoder()
    torch.nn.init.constant_(encoder.head.bias, float("nan"))
    encoder.save(tmp_path)
    with pytest.raises(AdapterFileError, match=r"'head.bias'.*NaN"):
        load_hint_encoder(tmp_path)


def test_a_damaged_weight_file_is_refused(tmp_path: Path) -> None:
    _encoder().save(tmp_path)
    (tmp_path / WEIGHTS).write_bytes((tmp_path / WEIGHTS).read_bytes()[:-9])
    with pytest.raises(AdapterFileError, match=WEIGHTS):
        load_hint_encoder(tmp_path)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"channels": 3}', '{"family": "a", "entry": "b", "channels": -1, "cell": 8}']
)
def test_a_damaged_description_is_refused(tmp_path: Path, text: str) -> None:
    _encoder().save(tmp_path)
    (tmp_path / CONFIG).write_text(text)
    with pytest.raises((AdapterFileError, ConfigError), match=f"{CONFIG}"):
        load_hint_encoder(tmp_path)


def test_weights_of_another_shape_are_refused_by_name(tmp_path: Path) -> None:
    _encoder().save(tmp_path)
    said = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(said | {"channels": 7}))
    with pytest.raises(AdapterFileError, match=r"'head.bias'.*shape \(6,\).*shape \(7,\)"):
        load_hint_encoder(tmp_path)


def test_a_missing_and_a_foreign_tensor_are_refused_by_name(tmp_path: Path) -> None:
    _encoder().save(tmp_path)
    state = load_file(tmp_path / WEIGHTS)
    save_file({name: value for name, value in state.items() if name != "head.bias"}, tmp_path / WEIGHTS)
    with pytest.raises(AdapterFileError, match=r"'head.bias'.*no such tensor"):
        load_hint_encoder(tmp_path)
    save_file(state | {"other": torch.zeros(1)}, tmp_path / WEIGHTS)
    with pytest.raises(AdapterFileError, match=r"'other'"):
        load_hint_encoder(tmp_path)
