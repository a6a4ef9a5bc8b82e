"""An adapter written at other strengths does at 1 what the first one does at these."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from torch import nn

from orthotune import OFTConfig, PeftModel, combine, get_peft_model, rewind, set_scale
from orthotune.errors import AdapterFileError, ConfigError, OutputError
from orthotune.layers.base import OFTLayer

INPUTS = torch.randn(5, 12, generator=torch.Generator().manual_seed(0))


def base() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 6))


def saved(folder: Path, **options: object) -> Path:
    tuned = get_peft_model(base(), OFTConfig(oft_block_size=3, target_modules=["0", "2"], **options))
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if parameter.requires_grad:
                noise = torch.rand(parameter.shape, generator=torch.Generator().manual_seed(1))
                parameter.mul_(0.7 + 0.6 * noise) if "magnitude" in name else parameter.add_(noise - 0.5)
    tuned.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "options",
    [{}, {"side": "out"}, {"block_share": True}, {"scaled": True}, {"magnitude": True}, {"coft": True, "eps": 0.5}],
    ids=str,
)
def test_every_layer_at_its_own_strength(tmp_path: Path, options: dict[str, object]) -> None:
    adapter = saved(tmp_path / "trained", **options)
    strengths = {"0": 0.35, "2": -0.8}
    done = rewind(adapter, strengths, tmp_path / "rewound")
    assert done.strengths == strengths and done.notes == ()
    wanted = PeftModel.from_pretrained(base(), adapter)
    for name, layer in wanted.named_modules():
        if isinstance(layer, OFTLayer):
            layer.set_scale("default", strengths[name.rpartition(".")[2]])
    found = PeftModel.from_pretrained(base(), tmp_path / "rewound")
    # Both take the power in float64 and store or use it in float32.
    torch.testing.assert_close(found(INPUTS), wanted(INPUTS), atol=2e-6, rtol=2e-6)


def test_one_strength_0_and_1(tmp_path: Path) -> None:
    adapter = saved(tmp_path / "trained")
    for t in (0.0, 0.5, 1.0):
        rewind(adapter, t, tmp_path / "rewound", overwrite=t > 0)
        wanted, found = (PeftModel.from_pretrained(base(), path) for path in (adapter, tmp_path / "rewound"))
        set_scale(wanted, "default", t)
        torch.testing.assert_close(found(INPUTS), wanted(INPUTS), atol=2e-6, rtol=2e-6)


def test_layers_that_are_not_named_stay(tmp_path: Path) -> None:
    adapter = saved(tmp_path / "trained")
    assert rewind(adapter, {"0": 0.5}, tmp_path / "rewound").strengths == {"0": 0.5, "2": 1.0}


def test_lora(tmp_path: Path) -> None:
    config = peft.LoraConfig(r=2, target_modules=["0", "2"], init_lora_weights=False)
    peft.get_peft_model(base(), config).save_pretrained(tmp_path / "trained")
    rewind(tmp_path / "trained", {"0": 0.3, "2": 0.6}, tmp_path / "rewound")
    wanted, found = (PeftModel.from_pretrained(base(), tmp_path / name) for name in ("trained", "rewound"))
    for name, layer in wanted.named_modules():
        if isinstance(layer, peft.tuners.lora.LoraLayer):
            layer.set_scale("default", {"0": 0.3, "2": 0.6}[name.rpartition(".")[2]])
    torch.testing.assert_close(found(INPUTS), wanted(INPUTS), atol=1e-6, rtol=1e-6)


def test_a_series_becomes_the_nearest_rotation_and_says_so(tmp_path: Path) -> None:
    adapter = saved(tmp_path / "trained", use_cayley_neumann=True)
    done = rewind(adapter, 0.5, tmp_path / "rewound")
    assert any("Neumann" in note for note in done.notes)


def test_refused_by_name(tmp_path: Path) -> None:
    adapter = saved(tmp_path / "trained")
    with pytest.raises(ConfigError, match="layer '3'.*no such layer"):
        rewind(adapter, {"3": 0.5}, tmp_path / "out")
    with pytest.raises(ConfigError, match="strength nan.*layer '0'.*finite"):
        rewind(adapter, {"0": float("nan")}, tmp_path / "out")
    with pytest.raises(AdapterFileError, match="tensors that are not rotations"):
        rewind(saved(tmp_path / "head", modules_to_save=["2"], exclude_modules=["2"]), 0.5, tmp_path / "out")
    dora = peft.LoraConfig(r=2, target_modules=["0"], use_dora=True)
    peft.get_peft_model(base(), dora).save_pretrained(tmp_path / "dora")
    with pytest.raises(AdapterFileError, match="use_dora"):
        rewind(tmp_path / "dora", 0.5, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError):
        rewind(adapter, 0.5, tmp_path / "out")


@pytest.mark.parametrize(("options", "kind"), [({}, "OFT"), ({"magnitude": True}, "ORTHOTUNE")], ids=str)
def test_stock_peft_reads_a_rewound_adapter_that_it_can_hold(
    tmp_path: Path, options: dict[str, object], kind: str
) -> None:
    rewind(saved(tmp_path / "trained", **options), 0.5, tmp_path / "rewound")
    assert json.loads((tmp_path / "rewound" / "adapter_config.json").read_text())["peft_type"] == kind


def test_what_stock_peft_computes_differently_stays_ours(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Flatten())
    get_peft_model(net, OFTConfig(oft_block_size=4, target_modules=["0"])).save_pretrained(tmp_path / "trained")
    kinds = []
    rewind(tmp_path / "trained", 0.5, tmp_path / "rewound")
    combine([tmp_path / "trained"], [0.5], tmp_path / "combined")
    for name in ("trained", "rewound", "combined"):
        kinds.append(json.loads((tmp_path / name / "adapter_config.json").read_text())["peft_type"])
    assert kinds == ["ORTHOTUNE"] * 3
