"""Every spelling of a layer's name leads to the module that the tool means, or to an error."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from orthotune.errors import AdapterFileError
from orthotune.formats.names.ldm import diffusers_names, ldm_names
from orthotune.formats.names.modules import ModuleNames, match_names
from orthotune.formats.names.spelling import component_of, places
from tests.support.image_models import text_encoder, unet, weights


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def model(request: pytest.FixtureRequest) -> Any:
    with torch.device("meta"):
        return unet(request.param)


def test_ldm_names_are_those_that_diffusers_converts_back(model: Any) -> None:
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    modules = weights(model)
    pairs = ldm_names(modules)
    layers = [name for name in modules if "norm" not in name]
    assert set(layers) <= set(pairs)
    # each tensor is its own module's name, in numbers
    checkpoint = {
        f"model.diffusion_model.{pairs[name]}.{kind}": torch.tensor(float(number))
        for number, name in enumerate(modules)
        if name in pairs
        for kind in ("weight", "bias")
    }
    config = dict(model.config) | {"class_embed_type": None}
    back = convert_ldm_unet_checkpoint(checkpoint, config)
    found = {name.removesuffix(".weight"): modules[int(t)] for name, t in back.items() if name.endswith(".weight")}
    assert all(name == meant for name, meant in found.items())
    assert set(found) == set(pairs)


def test_ldm_names_lead_back_without_the_model(model: Any) -> None:
    pairs = ldm_names(weights(model))
    assert diffusers_names(pairs.values()) == {ldm: name for name, ldm in pairs.items()}


@pytest.mark.parametrize(
    "spell",
    [
        lambda name, ldm: name,
        lambda name, ldm: f"base_model.model.{name}",
        lambda name, ldm: f"unet.{name}",
        lambda name, ldm: "lora_unet_" + name.replace(".", "_"),
        lambda name, ldm: "oft_unet_" + name.replace(".", "_"),
        lambda name, ldm: "lycoris_" + name.replace(".", "_"),
        lambda name, ldm: f"lora_unet.{name}",
        lambda name, ldm: "lora_unet_" + ldm.replace(".", "_"),
        lambda name, ldm: "oft_unet_" + ldm.replace(".", "_"),
        lambda name, ldm: f"diffusion_model.{ldm}",
        lambda name, ldm: f"model.diffusion_model.{ldm}",
    ],
    ids=[
        "diffusers", "peft", "unet", "lora_unet_", "oft_unet_", "lycoris_", "onetrainer", "lora_unet_ ldm",
        "oft_unet_ ldm", "diffusion_model", "ldm",
    ],
)  # fmt: skip
@pytest.mark.parametrize("component", ["", "unet"])
def test_every_spelling_of_every_layer(model: Any, component: str, spell: Any) -> None:
    modules = [name for name in weights(model) if "norm" not in name]
    spelled = {spell(name, ldm): name for name, ldm in ldm_names(modules).items()}
    assert len(spelled) == len(modules)
    match = match_names(spelled, {component: modules})
    assert match.matched == {name: (component, module) for name, module in spelled.items()}
    assert not match.unmatched


@pytest.mark.parametrize("projection", [False, True])
@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("lora_te1_text_model_encoder_layers_1_self_attn_q_proj", "encoder.layers.1.self_attn.q_proj"),
        ("lora_te_text_model_encoder_layers_1_mlp_fc1", "encoder.layers.1.mlp.fc1"),
        ("lycoris_text_model_encoder_layers_1_mlp_fc1", "encoder.layers.1.mlp.fc1"),
        ("cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc2", "encoder.layers.0.mlp.fc2"),
        ("conditioner.embedders.1.model.transformer.resblocks.0.mlp.c_fc", "encoder.layers.0.mlp.fc1"),
        ("text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc2", "encoder.layers.0.mlp.fc2"),
        ("base_model.model.text_model.encoder.layers.0.mlp.fc2", "encoder.layers.0.mlp.fc2"),
    ],
)
def test_text_encoders(projection: bool, name: str, module: str) -> None:
    with torch.device("meta"):
        names = weights(text_encoder(projection))
    ((_, found),) = ModuleNames({"": names}).find(name)
    assert found.removeprefix("text_model.") == module


def test_components_are_told_by_their_prefix() -> None:
    with torch.device("meta"):
        names = weights(text_encoder())
    components = {"text_encoder": names, "text_encoder_2": names, "unet": ["conv_in"]}
    layer = "text_model_encoder_layers_0_mlp_fc1"
    found = match_names([f"lora_te1_{layer}", f"lora_te2_{layer}", "oft_unet_conv_in"], components).matched
    assert [place[0] for place in found.values()] == ["text_encoder", "text_encoder_2", "unet"]
    with pytest.raises(AdapterFileError, match=r"2 modules that match: text_encoder\.encoder"):
        match_names(["text_model.encoder.layers.0.mlp.fc1"], components)


@pytest.mark.parametrize(
    ("prefix", "components", "component"),
    [
        ("unet", ["unet"], "unet"),
        ("lora_unet", ["unet"], "unet"),
        ("lora_unet", ["transformer"], "transformer"),
        ("lora_transformer", ["transformer"], "transformer"),
        ("transformer", ["transformer"], "transformer"),
        ("lora_prior_unet", ["prior"], "prior"),
        ("lora_prior_te", ["prior", "text_encoder"], "text_encoder"),
        ("lora_te", ["unet", "text_encoder"], "text_encoder"),
        ("lora_te1", ["text_encoder", "text_encoder_2"], "text_encoder"),
        ("lora_te2", ["text_encoder", "text_encoder_2"], "text_encoder_2"),
        ("lora_te3", ["text_encoder", "text_encoder_3"], "text_encoder_3"),
        ("lora_te4", ["text_encoder", "text_encoder_4"], "text_encoder_4"),
        ("text_encoder", ["text_encoder", "text_encoder_2"], "text_encoder"),
        ("text_encoder_2", ["text_encoder", "text_encoder_2"], "text_encoder_2"),
        ("text_encoder_3", ["text_encoder", "text_encoder_3"], "text_encoder_3"),
        ("text_encoder_4", ["text_encoder", "text_encoder_4"], "text_encoder_4"),
        ("clip_l", ["text_encoder", "text_encoder_2"], "text_encoder"),
        ("clip_g", ["text_encoder", "text_encoder_2"], "text_encoder_2"),
        ("t5", ["transformer", "text_encoder_3"], "text_encoder_3"),
        ("llama", ["transformer", "text_encoder_4"], "text_encoder_4"),
        ("diffusion_model", ["transformer", "text_encoder"], "transformer"),
        ("text_encoders.clip_l.transformer", ["text_encoder", "text_encoder_2"], "text_encoder"),
    ],
)
def test_every_prefix_of_onetrainer(prefix: str, components: list[str], component: str) -> None:
    """Its own files keep dots behind every prefix; its kohya files underscore what stands behind those of ``lora_``."""
    modules = {name: ["blk.lin", "blk.conv"] for name in components}
    names = [f"{prefix}.blk.lin"]
    names += [f"{prefix}_blk_conv"] if prefix.startswith("lora_") else []
    match = match_names(names, modules)
    assert not match.unmatched
    assert set(match.matched.values()) == {(component, m) for m in ("blk.lin", "blk.conv")[: len(names)]}
    alone = match_names(names, {"": ["blk.lin", "blk.conv"]})
    assert not alone.unmatched and {place for place, _ in alone.matched.values()} == {""}
    assert component_of(names[0])[1] == "blk.lin"


def test_the_t5_of_flux_is_its_second_text_encoder() -> None:
    """sd-scripts calls it ``te3`` in every model."""
    t5 = "encoder.block.0.layer.0.SelfAttention.q"
    modules = {"transformer": ["x"], "text_encoder": ["encoder.layers.0.mlp.fc1"], "text_encoder_2": [t5]}
    name = f"lora_te3_{t5.replace('.', '_')}"
    assert match_names([name], modules).matched == {name: ("text_encoder_2", t5)}
    assert places([f"lora_te3.{t5}"], modules) == {f"lora_te3.{t5}": ("text_encoder_2", t5)}


def test_processors_of_attention() -> None:
    attention = "mid_block.attentions.0.transformer_blocks.0.attn1"
    modules = ModuleNames({"": [f"{attention}.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")]})
    for name, module in (("to_q", "to_q"), ("to_v", "to_v"), ("to_out", "to_out.0")):
        assert modules.find(f"{attention}.processor.{name}_oft") == {("", f"{attention}.{module}")}


def test_prefixes_that_are_names_of_modules_stay_names() -> None:
    """GPT-2's own modules begin with what diffusers' pipelines put before a component."""
    modules = {"": ["transformer.h.0.attn.c_attn", "transformer.wte"]}
    assert match_names(["transformer.h.0.attn.c_attn"], modules).matched == {
        "transformer.h.0.attn.c_attn": ("", "transformer.h.0.attn.c_attn")
    }
    assert match_names(["transformer.h.0.attn.c_attn", "lost"], modules).unmatched == ["lost"]


def test_underscored_twins_are_an_error_only_where_they_are_meant() -> None:
    modules = {"": ["a.b_c", "a_b.c", "d"]}
    assert match_names(["lycoris_d", "a.b_c"], modules).matched == {"lycoris_d": ("", "d"), "a.b_c": ("", "a.b_c")}
    with pytest.raises(AdapterFileError, match=r"lycoris_a_b_c.*2 modules that match: a\.b_c, a_b\.c"):
        match_names(["lycoris_a_b_c"], modules)


def test_two_layers_for_one_module_are_an_error() -> None:
    with pytest.raises(AdapterFileError, match=r"'lora_te1_fc' and 'lora_te2_fc'.*the same module for both, 'fc'"):
        match_names(["lora_te1_fc", "lora_te2_fc"], {"": ["fc"]})
