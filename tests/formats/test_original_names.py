"""Original names of the layers of transformers: those of diffusers' converters, of ComfyUI's maps, read and written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders import single_file_utils as converters
from safetensors.torch import load_file, save_file

from orthotune import convert, load_adapter
from orthotune.cli.convert import lines
from orthotune.errors import UnsupportedLayerError
from orthotune.formats import AdapterState, LayerState, read_adapter
from orthotune.formats.fused import join_parts, split_fused
from orthotune.formats.names.original import Original, candidates, original_of
from orthotune.formats.names.original_tables import ORIGINALS
from orthotune.formats.names.spelling import spelled
from orthotune.formats.writers import write_adapter
from orthotune.operations.export import export
from orthotune.operations.fitting.components import adaptable
from orthotune.rotation.spec import RotationSpec
from tests.support.transformer_models import makers

#: family -> diffusers' own converter of original checkpoints, and the rows of q, k, v and of the rest of a fused layer
CONVERTERS: dict[str, Any] = {
    "flux": converters.convert_flux_transformer_checkpoint_to_diffusers,
    "chroma": converters.convert_chroma_transformer_checkpoint_to_diffusers,
    "flux2": converters.convert_flux2_transformer_checkpoint_to_diffusers,
    "sd3": converters.convert_sd3_transformer_checkpoint_to_diffusers,
    "auraflow": converters.convert_auraflow_transformer_checkpoint_to_diffusers,
    "wan": converters.convert_wan_transformer_to_diffusers,
    "hunyuan-video": converters.convert_hunyuan_video_transformer_to_diffusers,
    "lumina2": converters.convert_lumina2_to_diffusers,
    "z-image": converters.convert_z_image_transformer_checkpoint_to_diffusers,
    "ltx": converters.convert_ltx_transformer_checkpoint_to_diffusers,
    "krea2": converters.convert_krea2_transformer_checkpoint_to_diffusers,
}
#: rows of a part that the converters assume
WIDTH = {"lumina2": {"to_q": 2304, "to_k": 768, "to_v": 768}}
HIDDEN = 3072
#: what the last block of SD3, which discards the words, has not
SD3_DISCARDS = ("transformer_blocks.1.attn.to_add_out", "transformer_blocks.1.ff_context")
BY_FAMILY = {one.family: one for one in ORIGINALS}

#: ComfyUI comfy/lora.py: family -> how the loader spells a diffusers name. Beside these it knows ``lora_unet_`` with
#: underscores and ``diffusion_model.`` before each of its own names, which are the original ones.
OF_DIFFUSERS: dict[str, list[Any]] = {
    family: [lambda n: f"transformer.{n}", lambda n: "lycoris_" + n.replace(".", "_"),
             lambda n: "lora_transformer_" + n.replace(".", "_"), lambda n: n]
    for family in ("flux", "chroma", "flux2")
}  # fmt: skip
OF_DIFFUSERS |= {
    "sd3": [lambda n: f"transformer.{n}", lambda n: "lycoris_" + n.replace(".", "_"),
            lambda n: "lora_transformer_" + n.replace(".", "_")],
    "auraflow": [lambda n: f"transformer.{n}"],
    "pixart": [lambda n: f"transformer.{n}", lambda n: f"base_model.model.{n}"],
    "hidream": [lambda n: f"transformer.{n}", lambda n: "lycoris_" + n.replace(".", "_")],
    "z-image": [lambda n: f"transformer.{n}", lambda n: "lycoris_" + n.replace(".", "_")],
    "qwen-image": [lambda n: f"transformer.{n}", lambda n: "lycoris_" + n.replace(".", "_"), lambda n: n],
}  # fmt: skip
#: comfy/utils.py: layers that flux_to_diffusers has not, as they came with later models
NOT_IN_FLUX = ("distilled_guidance_layer", "time_guidance_embed", "double_stream_mod", "single_stream_mod")


class Checkpoint(dict[str, torch.Tensor]):
    """Tensors of an original checkpoint; biases, norms and positions, which no table has, are made when asked for."""

    def pop(self, key: str, *default: Any) -> torch.Tensor:  # type: ignore[override]
        if key not in self:
            assert any(word in key for word in ("bias", "norm", "pos", "scale", "register", "ln_")), key
            return torch.zeros(HIDDEN * 4)
        return super().pop(key)


def _rows(table: Original, part: str) -> int:
    last = part.rpartition(".")[2]
    return WIDTH.get(table.family, {}).get(last, HIDDEN * 4 if last == "proj_mlp" else HIDDEN)


@pytest.mark.parametrize("family", CONVERTERS)
def test_a_table_has_the_rows_where_diffusers_puts_them(family: str) -> None:
    table = BY_FAMILY[family]
    lines = {}
    for line, parts in table.modules.items():
        if parts not in lines.values():  # further names of the same layer are ComfyUI's
            lines[line] = parts
    lines = {line.format(n): tuple(p.format(n) for p in parts) for line, parts in lines.items() for n in (0, 1)}
    given, expected = Checkpoint(), {}
    for number, (name, parts) in enumerate(lines.items()):
        sizes = [_rows(table, part) for part in parts]
        values = torch.arange(sum(sizes), dtype=torch.float64) + number * 1e6
        given[f"{name}.weight"] = values[:, None]
        given[f"{name}.bias"] = values.clone()
        expected |= dict(zip(parts, values.split(sizes), strict=True))
    found = CONVERTERS[family](given)
    modules = {name.removesuffix(".weight") for name in found}
    for part, values in expected.items():
        if family == "sd3" and part.startswith(SD3_DISCARDS):
            continue
        if table.swaps(part, modules):
            values = torch.cat(values.chunk(2)[::-1])
        assert torch.equal(found[f"{part}.weight"][:, 0], values), part


def test_the_table_of_ideogram_is_that_of_the_converter_of_its_loras() -> None:
    from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_ideogram4_lora_to_diffusers as convert

    table, given, expected = BY_FAMILY["ideogram4"], {}, {}
    named = {line.format(n): tuple(p.format(n) for p in parts) for line, parts in table.modules.items() for n in (0, 1)}
    alike = ("feed_forward.w1", "feed_forward.w2", "feed_forward.w3", "adaln_modulation")
    named |= {f"layers.{n}.{name}": (f"layers.{n}.{name}",) for n in (0, 1) for name in alike}
    for number, (name, parts) in enumerate(named.items()):
        rows = torch.arange(4.0 * len(parts))[:, None] + 100 * number
        given |= {f"diffusion_model.{name}.lora_A.weight": torch.ones(1, 4),
                  f"diffusion_model.{name}.lora_B.weight": rows}  # fmt: skip
        expected |= dict(zip(parts, rows.chunk(len(parts)), strict=True))
        assert all(table.place(part).parts == parts and table.place(part).original == name for part in parts)
    found = convert(given)
    assert {f"transformer.{part}.lora_B.weight" for part in expected} == {n for n in found if "lora_B" in n}
    assert all(torch.equal(found[f"transformer.{part}.lora_B.weight"], rows) for part, rows in expected.items())


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return {family: make() for family, make in makers().items()}


def test_only_its_own_table_knows_a_model(models: dict[str, Any]) -> None:
    assert {family: original_of(adaptable(model)).family for family, model in models.items()} == {f: f for f in models}


def _known_to_comfyui(family: str, modules: list[str]) -> set[str]:
    table, found = BY_FAMILY[family], set[str]()
    for module in modules:
        place = table.place(module)
        if place is None:
            continue
        found |= {"lora_unet_" + place.original.replace(".", "_"), f"diffusion_model.{place.original}"}
        if family in ("hunyuan-video", "hunyuan-video-15"):  # a subclass there
            found.add(f"transformer.{place.original}")
        if not module.startswith(NOT_IN_FLUX):
            found |= {spell(module) for spell in OF_DIFFUSERS.get(family, [])}
    return found


@pytest.mark.parametrize("family", list(makers()))
def test_comfyui_knows_every_name_that_is_written(family: str, models: dict[str, Any]) -> None:
    modules = list(adaptable(models[family]))
    spelling = spelled([f"transformer.{name}" for name in modules], "comfyui", {"transformer": modules})
    known = _known_to_comfyui(family, modules)
    ignored = {stem for stem, name in spelling.names.items() if name not in known}
    assert ignored == set(spelling.unknown) and len(ignored) + (spelling.known or 0) == len(modules)
    assert not any("attn" in name or "attention" in name for name in ignored)


@pytest.mark.parametrize("component", ["text_encoder", "text_encoder_2"])
def test_comfyui_knows_the_layers_of_clip(component: str) -> None:
    """comfy/lora.py, model_lora_keys_clip: the level ``text_model``, which transformers 5 dropped."""
    inner = ["self_attn.q_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2"]
    modules = [f"encoder.layers.{n}.{name}" for n in range(2) for name in inner]
    number = 2 if component == "text_encoder_2" else 1
    for target in ("comfyui", "lycoris", "kohya-oft-v2", "onetrainer"):
        both = {component: modules, "text_encoder_2": modules, "unet": ["conv_in"]}
        names = spelled([f"{component}.{name}" for name in modules], target, both).names.values()
        assert set(names) == {f"lora_te{number}_text_model_{m.replace('.', '_')}" for m in modules}


def test_clip_of_hunyuan_video_is_comfyuis_first(models: dict[str, Any]) -> None:
    modules = {"transformer": list(adaptable(models["hunyuan-video"])), "text_encoder": ["layers.0.mlp.up_proj"],
               "text_encoder_2": ["encoder.layers.0.mlp.fc1"]}  # fmt: skip
    layer = "text_encoder_2.encoder.layers.0.mlp.fc1"
    assert spelled([layer], "comfyui", modules).names[layer] == "lora_te1_text_model_encoder_layers_0_mlp_fc1"


def test_without_the_base_a_name_of_several_families_is_refused() -> None:
    layer = "transformer_blocks.0.attn.to_q"
    assert {one.family for one in candidates([layer])} >= {"flux", "sd3", "hunyuan-video"}
    with pytest.raises(UnsupportedLayerError, match=r"flux.*hunyuan-video.*--base"):
        spelled([layer], "comfyui")
    assert spelled([layer], "lycoris").names == {layer: "lycoris_transformer_blocks_0_attn_to_q"}


def _adapter(sizes: dict[str, int], side: Any, block: int = 4) -> AdapterState:
    torch.manual_seed(1)
    spec = RotationSpec(side=side)
    shape = block * (block - 1) // 2
    return AdapterState(
        {n: LayerState({"": torch.randn(rows // block, shape) * 0.3}, spec) for n, rows in sizes.items()}
    )


@pytest.mark.parametrize("family", ["flux", "hunyuan-video", "hunyuan-video-15", "lumina2", "z-image", "sd3", "pixart"])
@pytest.mark.parametrize("side", ["in", "out"])
def test_one_rotation_of_a_fused_layer_rotates_all_its_parts(
    family: str, side: str, models: dict[str, Any], tmp_path: Path
) -> None:
    modules, table = adaptable(models[family]), BY_FAMILY[family]
    wholes = {whole: parts for name in modules for whole, parts in table.wholes_of(name) if set(parts) <= set(modules)}
    wholes = {name: parts for parts, name in {parts: name for name, parts in reversed(wholes.items())}.items()}
    assert wholes
    weights = {name: torch.cat([modules[p].weight for p in parts]).detach() for name, parts in wholes.items()}
    state = _adapter({name: w.shape[side == "in"] for name, w in weights.items()}, side)
    rows = {"": {name: module.weight.shape[0] for name, module in modules.items()}}
    split = split_fused(state, rows)
    for name, parts in wholes.items():
        found = torch.cat([split.layers[p].apply(modules[p].weight.detach()) for p in parts])
        torch.testing.assert_close(found, state.layers[name].apply(weights[name]), rtol=0, atol=1e-6)
    # and the same adapter is written again under the names that the parts have there
    target = "kohya-oft" if side == "out" else "kohya-oft-v2"
    if side == "in":
        neumann = RotationSpec(side="in", map="neumann")
        layers = {n: LayerState(layer.rotations, neumann) for n, layer in split.layers.items()}
        split = AdapterState(layers)
    if side == "out":  # one number of blocks for all layers
        keep = max(wholes, key=lambda name: weights[name].shape[0])
        split = AdapterState({p: split.layers[p] for p in wholes[keep]})
        wholes = {keep: wholes[keep]}
    path = write_adapter(split, tmp_path / "a.safetensors", target, {"": list(modules)}, rows)
    prefix = "oft_unet_" if side == "out" else "lora_unet_"
    back = read_adapter(path)
    assert set(back.layers) == {prefix + name.replace(".", "_") for name in wholes}


def test_rotations_of_inputs_that_differ_cannot_be_one(models: dict[str, Any], tmp_path: Path) -> None:
    state = _adapter({f"layers.0.attn.to_{letter}": 24 for letter in "qkv"}, "in")
    with pytest.raises(UnsupportedLayerError, match="another rotation of the inputs for each"):
        write_adapter(state, tmp_path / "a.safetensors", "kohya-oft-v2", {"": list(adaptable(models["lumina2"]))})


def test_a_block_over_two_parts_is_refused(models: dict[str, Any]) -> None:
    rows = {"": {name: module.weight.shape[0] for name, module in adaptable(models["flux"]).items()}}
    state = _adapter({"double_blocks.0.img_attn.qkv": 48}, "out", block=12)
    with pytest.raises(UnsupportedLayerError, match="4 blocks of 12 outputs"):
        split_fused(state, rows)


def test_outputs_whose_halves_have_changed_places_are_refused(models: dict[str, Any], tmp_path: Path) -> None:
    modules = {"": list(adaptable(models["sd3"]))}
    for layer in ("norm_out.linear", "transformer_blocks.1.norm1_context.linear"):
        with pytest.raises(UnsupportedLayerError, match="changed places"):
            write_adapter(_adapter({layer: 32}, "out"), tmp_path / "a.safetensors", "comfyui", modules)
    write_adapter(_adapter({"transformer_blocks.0.norm1_context.linear": 96}, "out"), tmp_path / "b.safetensors",
                  "comfyui", modules)  # fmt: skip


def test_scales_of_rows_change_places_with_their_halves(models: dict[str, Any], tmp_path: Path) -> None:
    modules = adaptable(models["sd3"])
    rows = {"": {name: module.weight.shape[0] for name, module in modules.items()}}
    own, there = "norm_out.linear", "diffusion_model.final_layer.adaLN_modulation.1"
    weight = modules[own].weight.detach()
    v, scale = torch.randn(weight.shape[1] // 4, 6) * 0.3, torch.linspace(0.5, 2, weight.shape[0])
    state = AdapterState({there: LayerState({"": v}, magnitude=scale)})
    expected = torch.cat(state.layers[there].apply(torch.cat(weight.chunk(2)[::-1])).chunk(2)[::-1])
    split = split_fused(state, rows)
    torch.testing.assert_close(split.layers[own].apply(weight), expected, rtol=0, atol=1e-6)  # float32
    assert torch.equal(split_fused(split, rows).layers[own].magnitude, split.layers[own].magnitude)
    spelling = spelled(list(split.layers), "comfyui", {"": list(modules)})
    assert spelling.swapped == {own}
    back, _ = join_parts(split, spelling, rows)
    assert torch.equal(back.layers[own].magnitude, scale)


def test_the_own_name_with_underscores_is_not_the_original_one(models: dict[str, Any]) -> None:
    rows = {"": {name: module.weight.shape[0] for name, module in adaptable(models["sd3"]).items()}}
    state = _adapter({"lora_transformer_norm_out_linear": 32}, "out")
    assert split_fused(state, rows).layers.keys() == state.layers.keys()


@pytest.mark.parametrize(
    ("family", "name", "modules"),
    [
        ("flux", "lora_unet_single_blocks_1_linear1", 4),
        ("flux", "diffusion_model.double_blocks.1.txt_attn.qkv", 3),
        ("wan", "lora_unet_blocks_0_cross_attn_k_img", 1),
        ("hunyuan-video", "diffusion_model.double_blocks.0.img_attn.qkv", 3),
        ("hunyuan-video-15", "diffusion_model.double_blocks.0.txt_attn.qkv", 3),
        ("hunyuan-video-15", "diffusion_model.double_blocks.0.txt_attn_k", 1),
        ("z-image", "diffusion_model.layers.0.attention.qkv", 3),
        ("chroma", "lora_unet_distilled_guidance_layer_layers_0_in_layer", 1),
        ("auraflow", "diffusion_model.double_layers.0.attn.w2q", 1),
        ("flux2", "lora_unet_single_blocks_0_linear1", 1),
        ("sd3", "lora_unet_joint_blocks_0_context_block_attn_qkv", 3),
    ],
)
def test_a_file_with_original_names_is_loaded(family: str, name: str, modules: int, tmp_path: Path) -> None:
    model = makers()[family]()
    features = {"lora_unet_distilled_guidance_layer_layers_0_in_layer": 8}
    table, inner = BY_FAMILY[family], adaptable(model)
    parts = next(p for line in table.modules for n in "01" if (p := table.parts(line.format(n))) and
                 name.endswith((line.format(n), line.format(n).replace(".", "_"))))  # fmt: skip
    width = features.get(name, inner[parts[0]].weight.shape[1])
    save_file({f"{name}.oft_R.weight": torch.randn(width // 4, 6) * 0.2}, tmp_path / "f.safetensors")
    _, report = load_adapter(model, tmp_path / "f.safetensors")
    assert sorted(report.matched.values()) == sorted(parts) and len(parts) == modules


@pytest.mark.parametrize("family", ["lumina2", "hunyuan-video"])
def test_changes_of_parts_are_one_tensor_for_comfyui(family: str, models: dict[str, Any], tmp_path: Path) -> None:
    model, table = models[family], BY_FAMILY[family]
    model.save_pretrained(tmp_path / "pipe" / "transformer")
    (tmp_path / "pipe" / "model_index.json").write_text('{"_class_name": "X", "transformer": ["diffusers", "Y"]}')
    place = next(p for name in adaptable(model) if (p := table.place(name)) and len(p.parts) == 3)
    weights = [model.get_submodule(part).weight.detach() for part in place.parts]
    state = _adapter({f"transformer.{place.parts[1]}": weights[1].shape[0]}, "out", block=2)
    write_adapter(state, tmp_path / "a.safetensors", "lycoris")
    export(tmp_path / "a.safetensors", tmp_path / "d.safetensors", tmp_path / "pipe", "diff")
    ((name, change),) = load_file(tmp_path / "d.safetensors").items()
    expected = [torch.zeros_like(w) for w in weights]
    expected[1] = next(iter(state.layers.values())).apply(weights[1]) - weights[1]
    torch.testing.assert_close(change, torch.cat(expected), rtol=0, atol=1e-6)
    assert name.removesuffix(".diff") in _known_to_comfyui(family, list(adaptable(model)))


def test_a_lora_of_parts_that_are_one_layer_there_is_refused(models: dict[str, Any], tmp_path: Path) -> None:
    save_file({n: t.contiguous() for n, t in models["lumina2"].state_dict().items()}, tmp_path / "base.safetensors")
    names = [f"layers.0.attn.to_{letter}" for letter in "qkv"]
    sizes = {name: models["lumina2"].get_submodule(name).weight.shape[0] for name in names}
    write_adapter(_adapter(sizes, "out", block=2), tmp_path / "a.safetensors", "lycoris")
    with pytest.raises(UnsupportedLayerError, match="one layer lora_unet_layers_0_attention_qkv there for 3"):
        export(tmp_path / "a.safetensors", tmp_path / "l.safetensors", tmp_path / "base.safetensors", "lora", rank=2)
    assert not (tmp_path / "l.safetensors").exists()


def test_a_file_that_comfyui_would_ignore_is_refused(models: dict[str, Any], tmp_path: Path) -> None:
    models["ltx"].save_pretrained(tmp_path / "pipe" / "transformer")
    (tmp_path / "pipe" / "model_index.json").write_text('{"_class_name": "X", "transformer": ["diffusers", "Y"]}')
    for layers, counts in (
        (["caption_projection.linear_1"], None),
        (["caption_projection.linear_1", "proj_in"], (1, 1)),
    ):
        sizes = {f"transformer.{name}": 16 for name in layers}
        write_adapter(_adapter(sizes, "out"), tmp_path / "a.safetensors", "lycoris")
        given = (tmp_path / "a.safetensors", tmp_path / "c.safetensors", "comfyui")
        if counts is None:
            with pytest.raises(UnsupportedLayerError, match="of which its loader knows none"):
                convert(*given, base=tmp_path / "pipe")
            assert not given[1].exists()
        else:
            done = convert(*given, base=tmp_path / "pipe")
            assert done.spelling is not None and (done.spelling.known, len(done.spelling.unknown)) == counts
            text = "\n".join(lines(done))
            assert "1 of 2 layers have names that the tool knows" in text and "ignored       by the tool: " in text
