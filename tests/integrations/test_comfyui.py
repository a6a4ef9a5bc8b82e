"""The node pack for ComfyUI, through the interface of its nodes and of its model patcher, against merges of our own."""

from __future__ import annotations

import copy
import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from orthotune.errors import ConfigError, UnsupportedLayerError
from orthotune.formats.names.ldm import ldm_names
from orthotune.layers.base import OFTLayer
from orthotune.operations.adapter import Adapter, read_once
from orthotune.operations.checkpoint.combine_files import combine_states
from orthotune.operations.load import apply_adapter
from orthotune.tuner.combination import Combination
from tests.support.adapter_files import lycoris, onetrainer
from tests.support.image_models import text_encoder, unet

ROOT = Path(__file__).parents[2] / "integrations" / "comfyui"
#: Layers of the UNet: linear, 1x1 and larger convolutions; and one of the text encoder.
LINEAR = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
CONV = "mid_block.resnets.0.conv1"
POINT = "down_blocks.1.attentions.0.proj_in"
TEXT = "text_model.encoder.layers.0.mlp.fc1"


class WeightAdapterBase:
    """``comfy.weight_adapter.WeightAdapterBase``: what a patch of a weight is recognised by."""


class Patcher:
    """ComfyUI's ``ModelPatcher``, as far as weights go, with the rules of ``comfy.lora.calculate_weight``."""

    def __init__(self, model: Any) -> None:
        self.model, self.patches = model, dict[str, list[Any]]()

    def clone(self) -> Patcher:
        new = Patcher(self.model)
        new.patches = {key: list(own) for key, own in self.patches.items()}
        return new

    def model_state_dict(self) -> dict[str, Tensor]:
        return self.model.weights

    def add_patches(self, patches: dict[Any, Any], strength_patch: float = 1.0, strength_model: float = 1.0) -> None:
        for target, patch in patches.items():
            key, offset = (target, None) if isinstance(target, str) else target[:2]
            if key in self.model.weights:
                self.patches.setdefault(key, []).append((strength_patch, patch, strength_model, offset, None))

    def weight(self, key: str, hook: float = 1.0) -> Tensor:
        weight = self.model.weights[key].to(torch.float32, copy=True)
        for strength, patch, strength_model, offset, function in self.patches.get(key, []):
            full = None
            if offset is not None:
                full, weight = weight, weight.narrow(*offset)
            assert isinstance(patch, WeightAdapterBase) and strength_model == 1.0
            weight = patch.calculate_weight(
                weight, key, strength * hook, strength_model, offset, function, torch.float32, self.model.weights
            )
            weight = weight if full is None else full
        return weight


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Path]]:
    """The node pack, imported as ComfyUI imports a folder of ``custom_nodes``, and the folder of LoRAs."""
    folder = tmp_path_factory.mktemp("loras")
    lora = SimpleNamespace(
        model_lora_keys_unet=lambda model, keys: keys | model.names,
        model_lora_keys_clip=lambda model, keys: keys | model.names,
    )
    modules: dict[str, Any] = {
        "comfy": ModuleType("comfy"), "comfy.lora": lora,
        "comfy.weight_adapter": SimpleNamespace(WeightAdapterBase=WeightAdapterBase),
        "folder_paths": SimpleNamespace(
            get_filename_list=lambda kind: sorted(path.name for path in folder.iterdir()),
            get_full_path_or_raise=lambda kind, name: str(folder / name),
        ),
    }  # fmt: skip
    modules["comfy"].lora = lora
    with pytest.MonkeyPatch.context() as patch:
        for name, module in modules.items():
            patch.setitem(sys.modules, name, module)
        spec = importlib.util.spec_from_file_location("orthotune_comfyui", ROOT / "__init__.py")
        assert spec is not None and spec.loader is not None
        package = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, "orthotune_comfyui", package)
        spec.loader.exec_module(package)
        yield package, folder
        sys.modules.pop("orthotune_comfyui.nodes")


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: t for name, t in model.state_dict().items() if name.endswith(".weight") and t.dim() > 1}


@pytest.fixture(scope="module")
def models() -> tuple[Any, Any, Any, Any]:
    """A UNet and a text encoder, and what ComfyUI has of them: original names, and a table of those of LoRAs."""
    net, text = unet("sd15"), text_encoder()
    names = ldm_names(name.removesuffix(".weight") for name in _weights(net))
    there = {name: f"diffusion_model.{names.get(name, name)}.weight" for name in names}
    model = SimpleNamespace(
        weights={
            there[n.removesuffix(".weight")]: t for n, t in _weights(net).items() if n.removesuffix(".weight") in there
        },
        names={f"lora_unet_{name.replace('.', '_')}": key for name, key in there.items()},
        there=there,
    )
    own = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in _weights(text).items()}
    stage = SimpleNamespace(
        names={
            f"{start}_{name.removesuffix('.weight').replace('.', '_')}": f"clip_l.transformer.{name}"
            for start in ("lora_te", "lora_te1") for name in own
        },
        weights={f"clip_l.transformer.{name}": tensor for name, tensor in own.items()},
    )  # fmt: skip
    return net, text, model, stage


class Clip:
    """ComfyUI's ``CLIP``."""

    def __init__(self, stage: Any, patcher: Patcher | None = None) -> None:
        self.cond_stage_model, self.patcher = stage, patcher or Patcher(stage)

    def clone(self) -> Clip:
        return Clip(self.cond_stage_model, self.patcher.clone())

    def add_patches(self, patches: dict[Any, Any], strength: float) -> None:
        self.patcher.add_patches(patches, strength)


def merged(net: nn.Module, file: Path | Adapter, t: float, kind: Any, component: str = "unet") -> nn.Module:
    """A copy of a model with the adapter merged by our own layers."""
    net = copy.deepcopy(net)
    adapter = file if isinstance(file, Adapter) else read_once(file)
    apply_adapter({component: net}, adapter, strict=False)
    for layer in [module for module in net.modules() if isinstance(module, OFTLayer)]:
        layer.set_scale("default", t, kind)
        layer.merge()
    return net


def weight_of(net: nn.Module, name: str) -> Tensor:
    layer: Any = net.get_submodule(name)
    return layer.get_base_layer().weight if isinstance(layer, OFTLayer) else layer.weight


def onetrainer_file(folder: Path, net: nn.Module) -> Path:
    sizes = {name: weight_of(net, name)[0].numel() for name in (LINEAR, CONV, POINT)}
    layers = {f"lora_unet_{name.replace('.', '_')}": size for name, size in sizes.items()}
    return onetrainer(folder / "style.safetensors", layers | {f"lora_te1_{TEXT.replace('.', '_')}": 12})


def test_the_interface_of_nodes(nodes: Any) -> None:
    package, folder = nodes
    (folder / "a.safetensors").touch()
    assert package.NODE_CLASS_MAPPINGS.keys() == package.NODE_DISPLAY_NAME_MAPPINGS.keys()
    assert package.NODE_DISPLAY_NAME_MAPPINGS["OrthotuneLoadOFT"] == "Load OFT (orthotune)"
    for node in package.NODE_CLASS_MAPPINGS.values():
        inputs = node.INPUT_TYPES()
        words = [*inputs["required"], *inputs.get("optional", {})]
        function: Callable[..., Any] = getattr(node(), node.FUNCTION)
        assert words == list(function.__annotations__)[: len(words)] or set(words) == set(
            function.__code__.co_varnames[1 : function.__code__.co_argcount]
        )
        assert node.CATEGORY and isinstance(node.RETURN_TYPES, tuple)
    assert "a.safetensors" in package.NODE_CLASS_MAPPINGS["OrthotuneLoadOFT"].INPUT_TYPES()["required"]["adapter"][0]


@pytest.mark.parametrize(("strength", "kind", "ours"), [
    (1.0, "partial rotation", "geodesic"), (0.4, "partial rotation", "geodesic"), (0.4, "linear", "linear"),
    (-1.0, "partial rotation", "geodesic"),
])  # fmt: skip
def test_patched_weights_are_the_merged_ones(nodes: Any, models: Any, strength: float, kind: str, ours: str) -> None:
    package, folder = nodes
    net, text, model, stage = models
    file = onetrainer_file(folder, net)
    base, clip = Patcher(model), Clip(stage)
    load = package.NODE_CLASS_MAPPINGS["OrthotuneLoadOFT"]()
    new, new_clip = load.load(base, file.name, strength, kind, clip=clip)
    assert not base.patches and not clip.patcher.patches  # what came in is as it was
    expected = merged(net, file, strength, ours)
    assert len(new.patches) == 3
    for name, key in model.there.items():
        assert torch.equal(new.weight(key), weight_of(expected, name)), name
        assert torch.equal(base.weight(key), weight_of(net, name))
    if kind == "partial rotation":
        change = model.there[LINEAR]
        norms = new.weight(change).norm(dim=1), base.weight(change).norm(dim=1)
        # a rotation at every strength: rows keep their norm, as far as the tool's five terms of a series do
        torch.testing.assert_close(*norms, rtol=0.02, atol=0)
    key = f"clip_l.transformer.{TEXT}.weight"
    assert new_clip.patcher.patches.keys() == {key}
    encoder = merged(text, file, strength, ours, "text_encoder")
    layer = next(name for name, module in encoder.named_modules() if isinstance(module, OFTLayer))
    assert layer.endswith(TEXT.removeprefix("text_model."))
    assert torch.equal(new_clip.patcher.weight(key), weight_of(encoder, layer))


def test_strengths_by_block_hooks_and_zero(nodes: Any, models: Any) -> None:
    package, folder = nodes
    net, _, model, _ = models
    file, base = onetrainer_file(folder, net), Patcher(model)
    load = package.NODE_CLASS_MAPPINGS["OrthotuneLoadOFT"]().load
    blocks = "# the middle, and one by ComfyUI's name\n*mid_block* = 0.5\n\n*input_blocks.1.* = 0"
    new, _ = load(base, file.name, 0.8, "partial rotation", blocks=blocks)
    assert new.patches.keys() == {model.there[CONV], model.there[POINT]}
    assert torch.equal(new.weight(model.there[CONV]), weight_of(merged(net, file, 0.4, "geodesic"), CONV))
    half = merged(net, file, 0.4, "geodesic")
    assert torch.equal(new.weight(model.there[POINT], hook=0.5), weight_of(half, POINT))
    assert load(base, file.name, 0.0, "linear")[0] is base
    for text, message in (("nothing", "line 1"), ("*x* = 0.5", "no layer of this name"), ("*conv* = a lot", "line 1")):
        with pytest.raises(ConfigError, match=message):
            load(base, file.name, 1.0, "linear", blocks=text)


def test_files_of_another_tool(nodes: Any, models: Any) -> None:
    package, folder = nodes
    net, _, model, _ = models
    name = f"lora_unet_{CONV.replace('.', '_')}"
    file = lycoris(folder / "butterfly.safetensors", {name: weight_of(net, CONV).shape[0]}, butterfly=2)
    new, _ = package.NODE_CLASS_MAPPINGS["OrthotuneLoadOFT"]().load(
        Patcher(model), file.name, 0.7, "as the file's own tool"
    )
    assert torch.equal(new.weight(model.there[CONV]), weight_of(merged(net, file, 0.7, None), CONV))


def test_two_adapters_one_after_the_other_and_combined(nodes: Any, models: Any) -> None:
    package, folder = nodes
    net, _, model, _ = models
    value = LINEAR.replace("to_k", "to_v")
    sizes = {f"lora_unet_{name.replace('.', '_')}": weight_of(net, name).shape[0] for name in (LINEAR, value)}
    first = lycoris(folder / "one.safetensors", sizes)
    second = lycoris(folder / "two.safetensors", dict(list(sizes.items())[:1]), seed=9)
    classes = package.NODE_CLASS_MAPPINGS
    load, read = classes["OrthotuneLoadOFT"]().load, classes["OrthotuneReadOFT"]().read
    once, _ = load(Patcher(model), first.name, 1.0, "partial rotation")
    twice, _ = load(once, second.name, 0.5, "partial rotation")
    plain = copy.deepcopy(net)
    with torch.no_grad():
        plain.get_submodule(LINEAR).weight.copy_(weight_of(merged(net, first, 1.0, "geodesic"), LINEAR))
    chained = merged(plain, second, 0.5, "geodesic")
    assert torch.equal(twice.weight(model.there[LINEAR]), weight_of(chained, LINEAR))
    (both,) = classes["OrthotuneCombineOFT"]().combine(*read(first.name), *read(second.name), 0.7, 0.5, "geodesic")
    new, _ = classes["OrthotuneApplyOFT"]().apply(Patcher(model), both, 1.0, "partial rotation")
    state = combine_states([read_once(first).state, read_once(second).state], Combination((0.7, 0.5)))
    expected_net = merged(net, replace(read_once(first), state=state), 1.0, "geodesic")
    for name in (LINEAR, value):
        expected = weight_of(expected_net, name)
        torch.testing.assert_close(new.weight(model.there[name]), expected, rtol=0, atol=1e-6)


def test_rows_of_one_weight(nodes: Any) -> None:
    """Flux: ComfyUI has one weight for query, key and value, and its table of names says which rows are whose."""
    package, folder = nodes
    torch.manual_seed(0)
    stem = "transformer.transformer_blocks.0.attn."
    file = onetrainer(folder / "flux.safetensors", {f"{stem}to_q": 12, f"{stem}to_v": 12})
    key = "diffusion_model.double_blocks.0.img_attn.qkv.weight"
    names = {}
    for place, part in enumerate(("to_q", "to_k", "to_v")):
        target = (key, (0, 8 * place, 8))
        names |= {f"lycoris_transformer_blocks_0_attn_{part}": target, f"{stem}{part}": target}
    model = SimpleNamespace(weights={key: torch.randn(24, 12)}, names=names)
    new, _ = package.NODE_CLASS_MAPPINGS["OrthotuneLoadOFT"]().load(Patcher(model), file.name, 1.0, "partial rotation")
    state = read_once(file).state
    q, k, v = model.weights[key].chunk(3)
    by_name = {name.rpartition(".")[2]: layer for name, layer in state.layers.items()}
    expected = torch.cat([by_name["to_q"].apply(q), k, by_name["to_v"].apply(v)])
    torch.testing.assert_close(new.weight(key), expected, rtol=0, atol=1e-6)
    assert torch.equal(new.weight(key)[8:16], k)


def test_an_adapter_of_another_model_is_refused(nodes: Any, models: Any) -> None:
    package, folder = nodes
    onetrainer(folder / "far.safetensors", {"transformer.blocks.0.attn.to_q": 12})
    with pytest.raises(UnsupportedLayerError, match="1 layers that it does not have"):
        package.NODE_CLASS_MAPPINGS["OrthotuneLoadOFT"]().load(Patcher(models[2]), "far.safetensors", 1.0, "linear")
