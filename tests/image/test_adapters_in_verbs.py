"""Adapters of image runs, LoRAs and control adapters in the verbs: their base, their encoder, their names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import orthotune
from orthotune.cli.convert import lines
from orthotune.errors import AdapterFileError, ConfigError
from orthotune.files.json_file import read_json
from orthotune.image.adapter.adapters import AdapterSettings, add_adapter, merge, trained
from orthotune.image.adapter.saved_adapter import save_adapter
from orthotune.image.control.hint_encoder import HintEncoder, HintShape
from orthotune.image.families.registry import open_family
from orthotune.operations.identify import identify
from orthotune.report.loading import loading
from orthotune.report.page import render
from orthotune.report.records import Records
from orthotune.worlds.image import PIPELINE


def _adapted(method: str, **fields: Any) -> Any:
    family = open_family(PIPELINE)
    add_adapter(family, AdapterSettings(method=method, targets=["to_q", "proj_in"], **fields))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in trained(family).values():
            parameter.normal_(std=0.05)
    return family


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rotation of outputs, a LoRA with its merged UNet, and a control adapter, all of the built-in pipeline."""
    home = tmp_path_factory.mktemp("adapters")
    family = _adapted("oft", block_size=4, rotation={"side": "out"})
    for name in ("oft", "control"):
        (home / name).mkdir()
        save_adapter(family, home / name)
    HintEncoder(HintShape.of(family)).save(home / "control")
    family = _adapted("lora", lora_rank=3, lora_alpha=5, lora={"use_rslora": True})
    (home / "lora").mkdir()
    save_adapter(family, home / "lora")
    merge(family)
    torch.save({k.replace(".base_layer", ""): v for k, v in family.denoiser.state_dict().items() if "lora_" not in k},
               home / "merged.pt")  # fmt: skip
    return home


def test_an_adapter_records_its_base(saved: Path) -> None:
    assert Path(read_json(saved / "oft" / "adapter_config.json")["base_model_name_or_path"]) == PIPELINE
    assert orthotune.inspect(saved / "lora")["base_model"] == str(PIPELINE)


@pytest.mark.parametrize("base", ["image-world", None])
def test_the_built_in_pipeline_is_a_base(base: str | None, saved: Path, tmp_path: Path) -> None:
    done = orthotune.convert(saved / "oft", tmp_path / "c.safetensors", "comfyui", base=base)
    assert done.spelling is not None and done.spelling.known == done.layers and not done.spelling.unknown
    assert f"{done.layers} of {done.layers} layers have names that the tool knows" in "\n".join(lines(done)).replace(
        f"matches       {done.layers} of", f"{done.layers} of"
    )
    out = orthotune.merge(saved / "oft", tmp_path / "m", base=base, stream=True)
    assert (out / "model_index.json").is_file()


def test_a_lora_is_known_to_the_verbs(saved: Path, tmp_path: Path) -> None:
    found = identify(saved / "lora")
    assert found.format == "diffusers-lora" and list(found.kinds) == ["LoRA of rank 3"]
    assert found.conversions["comfyui"] == "lossless" and found.conversions["lycoris"] == "impossible"
    rows = orthotune.inspect(saved / "lora")["layers"]
    assert len(rows) == found.layers and {row["scale"] for row in rows} == {5 / 3**0.5}
    merged = orthotune.merge(saved / "lora", tmp_path / "m")
    weights = load_file(next((merged / "unet").glob("*.safetensors")))
    for name, expected in torch.load(saved / "merged.pt", weights_only=True).items():
        torch.testing.assert_close(weights[name].float(), expected.float(), rtol=0, atol=2e-3)  # stored as float16


def test_a_lora_for_comfyui_changes_weights_as_the_run_did(saved: Path, tmp_path: Path) -> None:
    done = orthotune.convert(saved / "lora", tmp_path / "c.safetensors", "comfyui", base="image-world")
    tensors, before = load_file(done.written), open_family(PIPELINE).denoiser.state_dict()
    after = torch.load(saved / "merged.pt", weights_only=True)
    stems = {name.partition(".")[0] for name in tensors}
    changed = {"lora_unet_" + name.removesuffix(".weight").replace(".", "_"): name for name in before
               if not torch.equal(before[name], after[name])}  # fmt: skip
    assert stems == set(changed)
    for stem, name in changed.items():
        down, up = tensors[f"{stem}.lora_down.weight"], tensors[f"{stem}.lora_up.weight"]
        change = (up.flatten(1) @ down.flatten(1)) * tensors[f"{stem}.alpha"] / down.shape[0]
        # float32 sums of 3 products of numbers below 1
        torch.testing.assert_close(change.view_as(before[name]), after[name] - before[name], rtol=0, atol=1e-6)


def test_a_lora_is_refused_for_formats_of_rotations(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a LoRA.*--to comfyui"):
        orthotune.convert(saved / "lora", tmp_path / "c.safetensors", "lycoris")


@pytest.mark.parametrize("header", ["{", "[]"])
def test_a_damaged_lora_is_refused(header: str, tmp_path: Path) -> None:
    path = tmp_path / "pytorch_lora_weights.safetensors"
    save_file({"unet.conv_in.lora_A.weight": torch.ones(2, 3)}, path, {"lora_adapter_metadata": header})
    with pytest.raises(AdapterFileError, match="the header of .*a JSON object"):
        identify(tmp_path)
    save_file({"unet.conv_in.lora_A.weight": torch.ones(2, 3)}, path)
    with pytest.raises(AdapterFileError, match="both factors of each layer"):
        orthotune.convert(tmp_path, tmp_path / "c.safetensors", "comfyui")
    path.write_bytes(b"cut")
    with pytest.raises(AdapterFileError, match="is damaged"):
        identify(path)
    assert not (tmp_path / "c.safetensors").exists()


def test_the_encoder_of_control_images_is_not_lost_in_silence(saved: Path, tmp_path: Path) -> None:
    pipeline = open_family(PIPELINE).pipeline
    _, report = orthotune.load_adapter(pipeline, saved / "control")
    done = orthotune.convert(saved / "control", tmp_path / "c.safetensors", "lycoris")
    for messages in (report.warnings, done.notes, identify(saved / "control").warnings):
        assert any("ControlPipeline loads both" in message for message in messages)
    assert not identify(saved / "oft").warnings


def test_the_page_of_a_run_loads_the_encoder_with_the_adapter(saved: Path) -> None:
    run = {
        "recipe": "control",
        "method": "oft",
        "settings": {"model": str(PIPELINE)},
        "artifacts": {"adapter": "control"},
    }
    code = loading(Records(saved, run=run))
    assert code is not None and "ControlPipeline.from_pretrained" in code
    values: dict[str, Any] = {}
    exec(code.partition("\nimage_of_prompt")[0], values)
    assert type(values["pipeline"]).__name__ == "ControlPipeline"


@pytest.mark.parametrize("recipe", ["subject", "control", "t2i"])
def test_the_page_of_a_run_without_scores_speaks_of_images(recipe: str, saved: Path) -> None:
    run = {"recipe": recipe, "method": "oft", "settings": {"model": "m"}, "artifacts": {"adapter": "oft"}, "steps": 4}
    page = render(Records(saved, run=run))
    assert "No scores were measured in this run" in page
    assert not any(word in page for word in ("nats per token", "held-out text", "perplexity", "old_data"))


def test_an_attention_pool_that_reads_weights_sees_the_adapter() -> None:
    """HunyuanDiT hands the weights of its pooling attention to a function, past the layers."""
    from diffusers.models.embeddings import HunyuanDiTAttentionPool

    torch.manual_seed(0)
    config = orthotune.OFTConfig(target_modules=["q_proj", "k_proj", "v_proj", "c_proj"], oft_block_size=4)
    pool = orthotune.get_peft_model(nn.Sequential(HunyuanDiTAttentionPool(5, 8, 2, 12)), config)
    x, learned = torch.randn(3, 5, 8), [p for p in pool.parameters() if p.requires_grad]
    before = pool(x)
    for parameter in learned:
        nn.init.normal_(parameter, std=0.3)
    after = pool(x)
    after.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in learned) and len(learned) == 4
    pool.merge_adapter()
    torch.testing.assert_close(pool(x), after, rtol=0, atol=1e-6)  # float32, 8 features
    assert (after - before).abs().max() > 0.01
    assert json.dumps(sorted(pool.peft_config)) == '["default"]'
