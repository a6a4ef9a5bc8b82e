"""Transforms besides blocks in layers: copies, mixed batches, quantized bases, combinations, hot swaps, exports."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

import orthotune
from orthotune import OFTConfig, get_peft_model
from orthotune.errors import ConfigError, OrthotuneError
from orthotune.quantized import registry
from tests.quantized.toy import TOYS, RoundedLinear
from tests.support.contract_cases import TRANSFORMS, randomize

TARGETS = ["0", "2"]
every = pytest.mark.parametrize("name", TRANSFORMS)


def _base() -> nn.Sequential:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 8)).requires_grad_(False)


def _x(rows: int = 5) -> Tensor:
    return torch.randn(rows, 12, generator=torch.Generator().manual_seed(1))


def _model(name: str, base: nn.Module | None = None, **fields: Any) -> PeftModel:
    config = OFTConfig(target_modules=TARGETS, **TRANSFORMS[name] | fields)
    return randomize(get_peft_model(base or _base(), config)).eval()


def _weights(model: PeftModel) -> list[nn.Parameter]:
    return [p for key, p in model.named_parameters() if "oft_R" in key]


@every
@torch.no_grad()
def test_no_write_is_missed_and_copies_are_their_own(name: str) -> None:
    model = _model(name)
    before = model(_x())
    copied = copy.deepcopy(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for weight in _weights(model):
        weight.data.mul_(1.5).add_(0.1)  # the length of a vector alone would change nothing
    after = model(_x())
    assert (after - before).abs().max() > 1e-3
    for other in (copied, loaded):
        torch.testing.assert_close(other(_x()), before, rtol=0, atol=1e-6)  # thin products round by where memory lies


@every
@torch.no_grad()
def test_rows_of_a_mixed_batch_run_under_their_own_adapter(name: str) -> None:
    model = _model(name)
    model.add_adapter("blocks", OFTConfig(oft_block_size=4, target_modules=TARGETS))
    model.add_adapter("other", OFTConfig(target_modules=TARGETS, **TRANSFORMS[name]))
    randomize(model, seed=5, adapter="blocks")
    randomize(model, seed=6, adapter="other")
    rows = ["default", "blocks", "__base__", "other", "default"]
    found = model.eval()(_x(), adapter_names=rows)
    for index, adapter in enumerate(rows):
        if adapter == "__base__":
            expected = _base()(_x())
        else:
            model.set_adapter(adapter)
            expected = model(_x())
        torch.testing.assert_close(found[index], expected[index], rtol=0, atol=2e-6)


@every
def test_a_quantized_base_is_mapped_and_merged(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "LIBRARIES", [*TOYS, *registry.LIBRARIES])
    base = _base()
    for place in (0, 2):
        base[place] = RoundedLinear(base[place])
    model = _model(name, base)
    stored = [base[place].base_layer.codes.clone() for place in (0, 2)]
    y = model(_x())
    y.square().sum().backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in _weights(model))
    model.merge_adapter()
    # eight bits: the rounding of a merged weight is a hundredth of its largest number
    torch.testing.assert_close(model(_x()), y, rtol=0, atol=0.1 * float(y.detach().abs().max()))
    model.unmerge_adapter()
    assert all(torch.equal(base[place].base_layer.codes, codes) for place, codes in zip((0, 2), stored, strict=True))


@pytest.mark.parametrize("scaled", [False, True])
@torch.no_grad()
def test_both_sides_are_the_published_equation(scaled: bool, tmp_path: Path) -> None:
    """``Q_U diag(s) W Q_V`` with each reflection written out, for a rectangular weight."""
    model = orthotune.two_sided(_base(), r=2, target_modules=["0"], scaled=scaled).eval()
    torch.testing.assert_close(model(_x()), _base()(_x()), rtol=0, atol=2e-6)
    for seed, adapter in enumerate(("inputs", "outputs")):
        randomize(model, seed=3 + seed, adapter=adapter)
    layer = model.base_model.model[0]
    sides = []
    for adapter, size in (("inputs", 12), ("outputs", 16)):
        Q = torch.eye(size, dtype=torch.float64)
        for u in layer.oft_R[adapter].weight.double():
            Q = Q @ (torch.eye(size, dtype=torch.float64) - 2 * u.outer(u) / u.square().sum())
        sides.append(Q)
    s = layer.oft_magnitude["inputs"].weight.double() if scaled else torch.ones(16, dtype=torch.float64)
    expected = sides[1].mT @ (s[:, None] * layer.get_base_layer().weight.double()) @ sides[0]
    y = model(_x())
    linear, rest = layer.get_base_layer(), model.base_model.model[2]
    wanted = rest(torch.tanh(_x() @ expected.float().mT + linear.bias))
    torch.testing.assert_close(y, wanted, rtol=0, atol=2e-6)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(_base(), tmp_path / "inputs", adapter_name="inputs")
    loaded.load_adapter(tmp_path / "outputs", "outputs")
    loaded.base_model.set_adapter(["inputs", "outputs"])
    torch.testing.assert_close(loaded(_x()), y, rtol=0, atol=2e-6)
    torch.testing.assert_close(model.merge_and_unload()(_x()), y, rtol=0, atol=4e-6)
    with pytest.raises(ConfigError, match="side='in'"):
        orthotune.two_sided(_base(), side="in", target_modules=["0"])


def test_both_sides_are_refused_where_a_target_has_one_and_nothing_is_left_behind() -> None:
    model = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 8))
    before = list(model.state_dict())
    with pytest.raises(ConfigError, match=r"both sides.*layer '0' \(Embedding\).*exclude_modules"):
        orthotune.two_sided(model, r=2, target_modules=["0", "1"])
    with pytest.raises(ConfigError, match="both sides.*target_parameters.*stacks of experts"):
        orthotune.two_sided(model, r=2, target_parameters=["1.weight"])
    assert list(model.state_dict()) == before and type(model[0]) is nn.Embedding


@torch.no_grad()
def test_both_sides_are_rewound_as_the_two_rotations_that_they_are(tmp_path: Path) -> None:
    """``Q_U^t W Q_V^t``: the geodesic of the pair is that of each, and each file is rewound by itself."""
    model = orthotune.two_sided(
        _base(), transform="butterfly", oft_block_size=2, factors=2, target_modules=["0"]
    ).eval()
    for seed, adapter in enumerate(("inputs", "outputs")):
        randomize(model, seed=3 + seed, adapter=adapter)
    model.save_pretrained(tmp_path / "pair")
    for t in (1.0, 0.5, 0.0):
        rewound = _base()
        for adapter in ("inputs", "outputs"):
            orthotune.set_scale(model, adapter, t)
            orthotune.rewind(tmp_path / "pair" / adapter, t, tmp_path / adapter, overwrite=True)
        loaded = PeftModel.from_pretrained(rewound, tmp_path / "inputs", adapter_name="inputs")
        loaded.load_adapter(tmp_path / "outputs", "outputs")
        loaded.base_model.set_adapter(["inputs", "outputs"])
        torch.testing.assert_close(loaded(_x()), model(_x()), rtol=0, atol=2e-6)
        weight = model.base_model.model[0].weight
        torch.testing.assert_close(  # both rotations keep the singular values
            torch.linalg.svdvals(weight), torch.linalg.svdvals(_base()[0].weight), rtol=0, atol=2e-6
        )


@every
def test_strengths(name: str) -> None:
    model = _model(name)
    with torch.no_grad():
        y, plain = model(_x()), _base()(_x())
    for t, expected in ((0, plain), (1, y)):
        orthotune.set_scale(model, "default", t)
        torch.testing.assert_close(model(_x()).detach(), expected, rtol=0, atol=2e-6)
    if name in ("road", "psoft"):
        with pytest.raises(ConfigError, match=r"layer '0'.*kind='linear'"):
            orthotune.set_scale(model, "default", 0.5)
    else:
        orthotune.set_scale(model, "default", 0.5)
        with pytest.raises(OrthotuneError, match="strength 0.5"):  # a gradient that is not known is not left out
            model(_x()).sum().backward()
    orthotune.set_scale(model, "default", 0.5, "linear")
    model(_x()).sum().backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in _weights(model))


@every
def test_files_are_swapped_merged_and_exported(name: str, tmp_path: Path) -> None:
    model = _model(name, magnitude=True)
    y = model(_x()).detach()
    model.save_pretrained(tmp_path / "one")
    other = randomize(_model(name, magnitude=True), seed=11)
    assert (other(_x()) - y).abs().max() > 1e-3
    if name != "psoft":  # its basis is the same here, but a file may bring another
        orthotune.hotswap_adapter(other, tmp_path / "one")
        torch.testing.assert_close(other(_x()).detach(), y, rtol=0, atol=2e-6)
    # from the file alone: the map of each weight is the layer's
    state = orthotune.read_adapter(tmp_path / "one")
    for place in TARGETS:
        layer = model.base_model.model[int(place)]
        expected = layer.get_delta_weight("default") + layer.get_base_layer().weight
        found = state.transform(place).apply(layer.get_base_layer().weight)
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    facts = orthotune.diagnose(model).rotations
    assert {one.transform for one in facts} == {TRANSFORMS[name]["transform"]} and all(
        one.distance > 0.1 for one in facts
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every
def test_rotations_stay_float32_in_a_model_of_sixteen_bits(name: str, dtype: torch.dtype) -> None:
    model = _model(name, _base().to(dtype))
    wide = _model(name, _base().to(dtype).float())
    y = model(_x().to(dtype))
    assert y.dtype == dtype and {weight.dtype for weight in _weights(model)} == {torch.float32}
    # a few roundings of 16 bits in two layers
    torch.testing.assert_close(y.float(), wide(_x().to(dtype).float()), rtol=0, atol=24 * torch.finfo(dtype).eps)


def test_inspecting_says_what_is_trained(tmp_path: Path) -> None:
    _model("reflections", magnitude=True).save_pretrained(tmp_path / "one")
    facts = orthotune.inspect(tmp_path / "one")
    assert (facts["transform"], facts["transforms"], facts["magnitudes"]) == ("reflections", [], 2)
    assert [row["parameters"] for row in facts["layers"]] == [4 * 12, 4 * 16]
    with pytest.raises(OrthotuneError, match="2 common layers of other transforms"):
        orthotune.distance(tmp_path / "one", tmp_path / "one")


@pytest.mark.parametrize(
    "wrong",
    [
        {"transform": "reflection"}, {"variant": "road_9"}, {"factors": 3},
        {"transform": "planes", "variant": "angles"},
        {"layer_settings": {"0": {"variant": "nothing"}}}, {"layer_settings": {"0": {"transform": "nothing"}}},
        {"layer_settings": {"0": {"rank": -1}}}, {"r": 100}, {"transform": 7},
    ],
    ids=str,
)  # fmt: skip
def test_a_config_that_was_changed_is_refused_in_words(wrong: dict[str, Any], tmp_path: Path) -> None:
    _model("reflections").save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | wrong))
    with pytest.raises(OrthotuneError):
        orthotune.load_adapter(_base(), tmp_path)
