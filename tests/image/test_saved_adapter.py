"""Saved and loaded, here and by the libraries whose layout it is."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open

import orthotune
from orthotune.errors import AdapterFileError, ConfigError
from orthotune.image.adapter.adapters import add_adapter, trained
from orthotune.image.adapter.saved_adapter import LORA_WEIGHTS, load_adapter, save_adapter
from orthotune.image.adapter.settings import AdapterSettings
from orthotune.image.families.registry import family_of, open_family
from tests.image.test_adapters import WAYS, turn
from tests.image.test_families import PROMPTS, SEEDS, SMALL
from tests.support.tiny_pipelines import FAMILIES

MANY = AdapterSettings("lora", lora_rank=2, text_encoders=True)


def keys(path):
    with safe_open(path, "pt") as tensors:
        return set(tensors.keys())


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("way", ["oft", "options", "lora of several"])
def test_saved_and_loaded_it_draws_the_same(tiny, kind, way, tmp_path):
    family = open_family(tiny(kind))
    add_adapter(family, MANY if way == "lora of several" else WAYS[way])
    turn(family)
    expected = family.generate(PROMPTS, SEEDS, **SMALL)
    save_adapter(family, tmp_path)
    again = open_family(tiny(kind))
    load_adapter(again, tmp_path)
    assert torch.equal(again.generate(PROMPTS, SEEDS, **SMALL), expected)
    assert {name: p.shape for name, p in trained(again).items()} == {n: p.shape for n, p in trained(family).items()}
    if way == "options":
        pipeline = open_family(tiny(kind)).pipeline
        orthotune.load_adapter(pipeline, tmp_path)
        assert torch.equal(family_of(pipeline).generate(PROMPTS, SEEDS, **SMALL), expected)


def test_stock_peft_loads_what_it_can_express(tiny, tmp_path):
    family = open_family(tiny("sd15"))
    add_adapter(family, WAYS["oft"])
    turn(family)
    save_adapter(family, tmp_path)
    noisy, told = torch.randn(1, 4, 8, 8), torch.randn(1, 5, 12)
    with torch.no_grad():
        expected = family.denoiser(noisy, 7, told).sample
    orthotune.unregister()
    try:
        unet = PeftModel.from_pretrained(open_family(tiny("sd15")).pipeline.unet, tmp_path)
        assert type(unet.base_model).__module__.startswith("peft.")
        with torch.no_grad():
            found = unet(noisy, 7, told).sample
    finally:
        orthotune.register()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)  # another order of float32 products


def test_layouts(tiny, tmp_path):
    for name, settings in {"one": WAYS["oft"], "several": WAYS["options"], "lora": MANY}.items():
        family = open_family(tiny("sdxl"))
        add_adapter(family, settings)
        save_adapter(family, tmp_path / name)
    one = json.loads((tmp_path / "one/adapter_config.json").read_text())
    assert one["peft_type"] == "OFT" and one["target_modules"] == sorted(["to_q", "to_k", "to_v", "to_out.0"])
    assert all(key.startswith("base_model.model.") for key in keys(tmp_path / "one/adapter_model.safetensors"))
    several = json.loads((tmp_path / "several/adapter_config.json").read_text())
    assert several["peft_type"] == "ORTHOTUNE", "stock PEFT must not take it for one of a single model"
    starts = {key.partition(".")[0] for key in keys(tmp_path / "several/adapter_model.safetensors")}
    assert starts == {"unet", "text_encoder", "text_encoder_2"}
    assert {key.partition(".")[0] for key in keys(tmp_path / "lora" / LORA_WEIGHTS)} == starts


def test_nothing_to_save_and_files_of_another_model(tiny, tmp_path):
    family = open_family(tiny("sd15"))
    with pytest.raises(ConfigError, match="save_pretrained"):
        save_adapter(family, tmp_path)
    assert not list(tmp_path.iterdir())
    other = open_family(tiny("sdxl"))
    add_adapter(other, WAYS["oft"])
    save_adapter(other, tmp_path)
    with pytest.raises(AdapterFileError):
        load_adapter(family, tmp_path)
