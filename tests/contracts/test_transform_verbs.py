"""Every transform under every verb: it works and does what the model does, or the refusal names transform and reason.

Mixed batches, quantized bases, hot swaps and diagnosis are in ``tests/layers/test_transforms.py``.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import orthotune
from orthotune import OFTConfig, get_peft_model
from orthotune.errors import ConfigError, OrthotuneError
from orthotune.operations.diagnosis.diagnose import diagnose_state
from orthotune.recipes.strength_choice import exact_adapter
from orthotune.runs.layer_strengths import layer_strengths
from tests.support.contract_cases import TRANSFORMS, randomize

#: more of the roster that differ in what they can
ROSTER: dict[str, dict[str, Any]] = TRANSFORMS | {
    "one stage": {"transform": "butterfly", "oft_block_size": 4, "factors": 1},
    "road_1": {"transform": "planes", "variant": "road_1", "oft_block_size": 4},
    "rotation": {"transform": "subspace", "variant": "rotation", "r": 4},
    "odd": {"transform": "reflections", "r": 3, "init_weights": False},
    "one reflection": {"transform": "ether", "oft_block_size": 4},
}
#: what the powers of other transforms are refused for
NO_FORM = {
    "road": "road_2", "psoft": "two scales", "ether": "ether+",
    "odd": "3 reflections", "one reflection": "a reflection in each block",
}  # fmt: skip
#: their powers are rotations of larger blocks: they are written as these, and strengths of layers are those of the file
AS_BLOCKS = ("butterfly", "givens")
#: the same of combinations
NO_SUM = {
    "butterfly": "2 stages", "road": "road_2", "givens": "givens", "psoft": "two scales", "ether": "hyperplane",
    "odd": "determinant may be -1", "one reflection": "hyperplane",
}  # fmt: skip
BASE: dict[str, Any] = {}
TARGETS = ["q_proj", "down_proj"]
every = pytest.mark.parametrize("name", ROSTER)
#: for verbs that do not depend on the variant
of_each = pytest.mark.parametrize("name", [*TRANSFORMS, "odd"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("verbs")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=24, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=16, tie_word_embeddings=True,
    )  # fmt: skip
    BASE["model"] = LlamaForCausalLM(config)
    BASE["model"].save_pretrained(path / "base")
    yield path
    BASE.clear()


def _base(folder: Path) -> Any:
    return copy.deepcopy(BASE["model"])


def _logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(torch.arange(8)[None]).logits


def _saved(folder: Path, name: str, seed: int = 3) -> Path:
    out = folder / f"{name}-{seed}"
    if not out.exists():
        model = randomize(get_peft_model(_base(folder), OFTConfig(target_modules=TARGETS, **ROSTER[name])), seed)
        model.save_pretrained(out)
    return out


def _distances(adapter: Path) -> list[float]:
    return [row.distance for row in diagnose_state(orthotune.read_adapter(adapter)).rotations]


def _at(folder: Path, adapter: Path, t: float = 1.0) -> Tensor:
    model = PeftModel.from_pretrained(_base(folder), adapter)
    orthotune.set_scale(model, "default", t)
    return _logits(model)


@every
def test_rewind(folder: Path, tmp_path: Path, name: str) -> None:
    adapter = _saved(folder, name)
    if name in NO_FORM:
        with pytest.raises(OrthotuneError, match=r"layer '.*" + NO_FORM[name].replace("+", r"\+")):
            orthotune.rewind(adapter, 0.6, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return
    for t in (0.6, -0.5, 0.0):
        orthotune.rewind(adapter, t, tmp_path / "out", overwrite=True)
        # float32 parameters of a power that is taken in float64, in two layers
        torch.testing.assert_close(_at(folder, tmp_path / "out"), _at(folder, adapter, t), rtol=0, atol=1e-5)


@every
def test_strengths_of_layers_and_their_gradients(name: str) -> None:
    # float64 throughout, which a language model's norms are not
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 8)).double().requires_grad_(False)
    model = randomize(get_peft_model(base, OFTConfig(target_modules=["0", "2"], **ROSTER[name])))
    x = torch.randn(5, 16, dtype=torch.float64)
    trained = model(x).detach()
    if name in (*NO_FORM, *AS_BLOCKS):
        with pytest.raises(ConfigError, match="the strength of layer"):
            layer_strengths(model)
        return
    layers = layer_strengths(model)

    def loss(t: float) -> Tensor:
        layers.set({layers.names[0]: t, layers.names[1]: 0.8})
        return model(x).square().sum()

    loss(0.55).backward()
    found = layers.gradients()[layers.names[0]]
    with torch.no_grad():
        expected = float(loss(0.55 + 1e-4) - loss(0.55 - 1e-4)) / 2e-4
    # central differences of a hundredth of a percent of the strength: their squares
    assert found == pytest.approx(expected, rel=1e-5)
    layers.set(dict.fromkeys(layers.names, 1.0))
    torch.testing.assert_close(model(x).detach(), trained, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", AS_BLOCKS)
def test_stages_are_rewound_as_blocks(folder: Path, tmp_path: Path, name: str) -> None:
    """At strength 1, too: with these, strengths of layers are chosen and trained."""
    adapter = _saved(folder, name)
    exact = exact_adapter(adapter, "oft", tmp_path)
    assert orthotune.identify(exact).conversions["peft"] == "lossless"
    torch.testing.assert_close(_at(folder, exact), _at(folder, adapter), rtol=0, atol=1e-5)
    model = PeftModel.from_pretrained(_base(folder), exact, is_trainable=True)
    layers = layer_strengths(model)
    layers.set(dict.fromkeys(layers.names, 0.55))
    # where the strengths of the model are those of the file that is written
    orthotune.rewind(adapter, 0.55, tmp_path / "out")
    torch.testing.assert_close(_logits(model), _at(folder, tmp_path / "out"), rtol=0, atol=1e-5)
    model(torch.arange(8)[None]).logits.square().sum().backward()
    assert all(abs(slope) > 0 for slope in layers.gradients().values())


@every
def test_combine(folder: Path, tmp_path: Path, name: str) -> None:
    one, other = _saved(folder, name), _saved(folder, name, seed=5)
    model = PeftModel.from_pretrained(_base(folder), one)
    model.load_adapter(other, "other")
    if name in NO_SUM:
        with pytest.raises(OrthotuneError, match=NO_SUM[name]):
            orthotune.combine([one, other], [1.0, 1.0], tmp_path / "both")
        with pytest.raises(OrthotuneError, match=NO_SUM[name]):
            model.base_model.add_weighted_adapter(["default", "other"], [1.0, 1.0])
        assert not (tmp_path / "both").exists()
        return
    weights = [0.6, -0.3]
    orthotune.combine([one, other], weights, tmp_path / "both", "product")
    model.base_model.add_weighted_adapter(["default", "other"], weights, "both", "product")
    for adapter, weight in zip(("default", "other"), weights, strict=True):
        orthotune.set_scale(model, adapter, weight)
    model.base_model.set_adapter(["default", "other"])
    expected = _logits(model)
    model.base_model.set_adapter("both")
    torch.testing.assert_close(_logits(model), expected, rtol=0, atol=2e-5)
    torch.testing.assert_close(_at(folder, tmp_path / "both"), expected, rtol=0, atol=2e-5)
    orthotune.combine([one, one], [0.5, 0.5], tmp_path / "same")  # a mean of equal ones is the one
    torch.testing.assert_close(_at(folder, tmp_path / "same"), _at(folder, one), rtol=0, atol=2e-5)


@of_each
def test_merge_from_file_to_file_and_export_to_lora(folder: Path, tmp_path: Path, name: str) -> None:
    adapter = _saved(folder, name)
    expected = _at(folder, adapter)
    orthotune.merge(adapter, tmp_path / "merged", base=folder / "base", stream=True)
    torch.testing.assert_close(
        _logits(LlamaForCausalLM.from_pretrained(tmp_path / "merged")), expected, rtol=0, atol=1e-5
    )
    orthotune.export(adapter, tmp_path / "lora", folder / "base", "lora", rank=16)
    torch.testing.assert_close(
        _logits(PeftModel.from_pretrained(_base(folder), tmp_path / "lora")), expected, rtol=0, atol=1e-5
    )


@of_each
def test_diagnosis_and_inspection(folder: Path, name: str) -> None:
    adapter = _saved(folder, name)
    facts = diagnose_state(orthotune.read_adapter(adapter))
    assert len(facts.rotations) == 2 and {row.transform for row in facts.rotations} == {ROSTER[name]["transform"]}
    orthogonal = name not in ("road", "psoft", "ether")
    assert all((row.orthogonality_error < 1e-4) == orthogonal for row in facts.rotations)
    stored = load_file(adapter / "adapter_model.safetensors")
    trained = sum(tensor.numel() for key, tensor in stored.items() if "basis" not in key)
    assert sum(row["parameters"] for row in orthotune.inspect(adapter)["layers"]) == trained


def test_adapters_of_two_transforms_are_not_combined(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OrthotuneError, match="transform planes and reflections"):
        orthotune.combine([_saved(folder, "reflections"), _saved(folder, "angles")], [1.0, 1.0], tmp_path / "both")
    blocks = tmp_path / "blocks"
    get_peft_model(_base(folder), OFTConfig(oft_block_size=4, target_modules=TARGETS)).save_pretrained(blocks)
    with pytest.raises(OrthotuneError, match="blocks and the transform 'reflections'"):
        orthotune.combine([_saved(folder, "reflections"), blocks], [1.0, 1.0], tmp_path / "both")


@pytest.mark.parametrize("name", ["angles", "rotation", "reflections"])
def test_a_magnitude_that_is_corrected(folder: Path, tmp_path: Path, name: str) -> None:
    adapters, both = [_saved(folder, name), _saved(folder, name, seed=5)], tmp_path / "both"
    orthotune.combine(adapters, [0.5, 0.5], both, "tangent")
    plain = _distances(both)
    orthotune.combine(adapters, [0.5, 0.5], both, "tangent", magnitude_correction=True, overwrite=True)
    corrected = _distances(both)
    assert all(b > a for a, b in zip(plain, corrected, strict=True))
    assert json.loads((both / "adapter_config.json").read_text())["transform"] == ROSTER[name]["transform"]
    if name == "angles":  # the norm of the angles themselves
        stored = [load_file(path / "adapter_model.safetensors") for path in (*adapters, both)]
        for key in stored[0]:
            norms = [float(file[key].norm()) for file in stored]
            assert norms[2] == pytest.approx((norms[0] + norms[1]) / 2, rel=1e-5)
    with pytest.raises(ConfigError, match="magnitude_correction.*tangent or ties"):
        orthotune.combine(adapters, [0.5, 0.5], tmp_path / "no", "geodesic", magnitude_correction=True)
