"""What the tab After writes: a conversion and an export at the strengths that its sliders show."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import orthotune
from orthotune.files.safetensors_file import read_tensors
from orthotune.studio import computing
from tests.support.tiny_text import save_model

PARTS = {"q_proj": 0.0, "up_proj": 0.5}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a tiny model with a chat template; its rotations are not those of the first step."""
    folder = tmp_path_factory.mktemp("made")
    save_model(folder / "base", dtype="float32", chat=True)
    config = orthotune.OFTConfig(oft_block_size=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model = orthotune.get_peft_model(AutoModelForCausalLM.from_pretrained(folder / "base"), config)
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.5)
    model.save_pretrained(folder / "run" / "adapter")
    (folder / "run" / "run.json").write_text(json.dumps({"recipe": "sft", "settings": {"model": str(folder / "base")}}))
    return folder / "run"


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters())


def test_an_export_has_the_strengths_of_the_parts(run: Path, tmp_path: Path) -> None:
    """A part at 0 is the base, a part at 1 the whole adapter, and a part between is neither."""
    base = computing.base_of(str(run))
    computing.export_to(str(run), base, "dense", str(tmp_path / "all"), 1.0)
    computing.export_to(str(run), base, "dense", str(tmp_path / "parts"), 1.0, "projection", PARTS)
    first, whole, some = (_weights(folder) for folder in (Path(base), tmp_path / "all", tmp_path / "parts"))
    between = []
    for name in (name for name in first if name.endswith("_proj.weight")):
        wanted = first if "q_proj" in name else whole
        assert not torch.equal(first[name], whole[name]), name
        if "up_proj" in name:
            between.append(not (some[name].allclose(first[name]) or some[name].allclose(whole[name])))
        else:
            torch.testing.assert_close(some[name], wanted[name])
    assert between and all(between)
    computing.export_to(str(run), base, "dense", str(tmp_path / "half"), 0.5, "projection", {"q_proj": 1.0})
    computing.export_to(str(run), base, "dense", str(tmp_path / "half-of-all"), 0.5)
    for name, weight in _weights(tmp_path / "half").items():
        torch.testing.assert_close(weight, _weights(tmp_path / "half-of-all")[name], atol=2e-6, rtol=2e-6)


def test_a_conversion_has_the_strengths_of_the_parts(run: Path, tmp_path: Path) -> None:
    computing.convert_to(str(run), "orthotune", str(tmp_path / "some"), False, 0.5, "projection", PARTS)
    computing.write_at(str(run), 0.5, "projection", PARTS, str(tmp_path / "written"))
    computing.convert_to(str(run), "orthotune", str(tmp_path / "trained"), False)
    some, written, trained = (
        read_tensors(tmp_path / name / "adapter_model.safetensors") for name in ("some", "written", "trained")
    )
    assert some.keys() == written.keys() == trained.keys()
    assert all(torch.equal(some[name], written[name]) for name in some)
    assert not any(torch.equal(some[name], trained[name]) for name in some if "q_proj" in name)
