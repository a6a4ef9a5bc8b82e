"""Adapters of other tools on real models: the output is that of the turned weights, whatever wraps the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from orthotune import OFTConfig, PeftModel, get_peft_model, load_adapter
from orthotune.errors import AdapterFileError, BlockSizeError, ConfigError, TargetError
from orthotune.formats.names.ldm import ldm_names
from orthotune.rotation.placed import placed
from tests.support.adapter_files import lycoris, merged, onetrainer, state
from tests.support.bases import lone, numbers, places, put
from tests.support.checkpoint_models import llama
from tests.support.image_models import pipeline, text_encoder, unet
from tests.support.producers import FIXTURES

#: float32, some twenty layers deep; the adapters move the outputs by more than 1e-2
CLOSE: dict[str, float] = {"rtol": 0, "atol": 1e-4}


def _image(model: Any) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x, context = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 5, 12, generator=generator)
    more = {"text_embeds": context[:, 0, :], "time_ids": torch.ones(2, 5)}
    with torch.no_grad():
        return model(x, torch.tensor(3), context, added_cond_kwargs=more).sample


def _outputs(model: Any, names: list[str]) -> dict[str, int]:
    return {name: model.get_submodule(name).weight.shape[0] for name in names}


NAMES = [
    "conv_in", "down_blocks.1.resnets.0.conv1", "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    "mid_block.attentions.0.transformer_blocks.0.ff.net.2", "up_blocks.1.upsamplers.0.conv",
]  # fmt: skip


@pytest.mark.parametrize("stages", [0, 2])
@pytest.mark.parametrize("ldm", [False, True])
@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_unet(kind: str, ldm: bool, stages: int, tmp_path: Path) -> None:
    model = unet(kind).eval()
    spelled = ldm_names(NAMES + [n for n, _ in model.named_modules()]) if ldm else {n: n for n in NAMES}
    places = {"lora_unet_" + spelled[name].replace(".", "_"): name for name in NAMES}
    layers = {raw: model.get_submodule(name).weight.shape[0] for raw, name in places.items()}
    path = lycoris(tmp_path / "style.safetensors", layers, butterfly=stages)
    before, expected = _image(model), _image(merged(model, path, places))
    numbers = state(model)
    same, report = load_adapter(model, path)
    assert same is model and report.matched == places
    assert set(report.frozen) == (set(NAMES) if stages else set())
    torch.testing.assert_close(_image(model), expected, **CLOSE)
    assert (expected - before).abs().max() > 1e-2
    model.disable_adapters()
    assert torch.equal(_image(model), before)
    model.enable_adapters()
    torch.testing.assert_close(_image(model), expected, **CLOSE)
    model.delete_adapters("default")
    assert torch.equal(_image(model), before)
    left = {name.replace(".base_layer", ""): tensor for name, tensor in model.state_dict().items()}
    assert all(torch.equal(left[name], tensor) for name, tensor in numbers.items())


def test_pipeline(tmp_path: Path) -> None:
    pipe = pipeline()
    places = {
        "lora_unet_mid_block_resnets_0_conv1": ("unet", "mid_block.resnets.0.conv1"),
        "lora_te_text_model_encoder_layers_1_mlp_fc1": ("text_encoder", "encoder.layers.1.mlp.fc1"),
    }
    layers = {raw: getattr(pipe, part).get_submodule(name).weight.shape[0] for raw, (part, name) in places.items()}
    path = lycoris(tmp_path / "style.safetensors", layers)
    tokens = torch.arange(8).view(1, 8)
    parts = {"unet": _image, "text_encoder": lambda model: model(tokens).last_hidden_state.detach()}
    own = {part: {raw: name for raw, (p, name) in places.items() if p == part} for part in parts}
    expected = {part: run(merged(getattr(pipe, part), path, own[part])) for part, run in parts.items()}
    same, report = load_adapter(pipe, path, "style")
    assert same is pipe
    assert report.matched == {raw: ".".join(place) for raw, place in places.items()}
    assert not [name for name in report.untouched if name.startswith("vae")]
    for part, run in parts.items():
        torch.testing.assert_close(run(getattr(pipe, part).eval()), expected[part], **CLOSE)
    with pytest.raises(ConfigError, match="adapter_name='style'"):
        load_adapter(pipe, path, "style")
    # one component, named or alone
    encoder = text_encoder()
    with pytest.raises(AdapterFileError, match=r"1 of 2 layers.*lora_unet_mid_block_resnets_0_conv1.*strict=False"):
        load_adapter({"text_encoder": encoder}, path)
    assert not [module for module in encoder.modules() if hasattr(module, "oft_R")]
    _, report = load_adapter({"text_encoder": encoder}, path, strict=False)
    assert report.unmatched == ["lora_unet_mid_block_resnets_0_conv1"]
    assert "1 layer of the file without a module: lora_unet_mid_block_resnets_0_conv1" in str(report)
    torch.testing.assert_close(parts["text_encoder"](encoder), expected["text_encoder"], **CLOSE)


@pytest.fixture
def language(tmp_path: Path) -> tuple[nn.Module, Path, dict[str, str]]:
    torch.manual_seed(0)
    model = llama().eval()
    places = {f"transformer.{name}": name for name in ("model.layers.0.mlp.up_proj", "model.layers.1.mlp.down_proj")}
    features = {raw: model.get_submodule(name).weight.shape[1] for raw, name in places.items()}
    return model, onetrainer(tmp_path / "style.safetensors", features), places


def _logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(torch.arange(12).view(2, 6)).logits


def test_language_model_comes_back_in_a_peft_model_and_is_saved_as_ours(language: Any, tmp_path: Path) -> None:
    model, path, places = language
    expected, plain = _logits(merged(model, path, places)), llama().eval()
    plain.load_state_dict(model.state_dict())
    tuned, report = load_adapter(model, path)
    assert isinstance(tuned, PeftModel) and not report.frozen
    torch.testing.assert_close(_logits(tuned), expected, **CLOSE)
    trained = [name for name, p in tuned.named_parameters() if p.requires_grad]
    assert len(trained) == 2 and all(".oft_R." in name for name in trained)
    tuned.save_pretrained(tmp_path / "adapter")
    again, report = load_adapter(plain, tmp_path / "adapter")
    assert len(report.matched) == 2
    torch.testing.assert_close(_logits(again), expected, **CLOSE)
    torch.testing.assert_close(_logits(again.merge_and_unload()), expected, **CLOSE)


def test_beside_another_adapter(language: Any, tmp_path: Path) -> None:
    model, path, places = language
    expected = _logits(merged(model, path, places))
    tuned = get_peft_model(model, OFTConfig(oft_block_size=4, target_modules=["up_proj"], init_weights=False)).eval()
    first = _logits(tuned)
    same, _ = load_adapter(tuned, path, "style")
    assert same is tuned and tuned.active_adapter == "style"
    torch.testing.assert_close(_logits(tuned), expected, **CLOSE)
    tuned.set_adapter("default")
    assert torch.equal(_logits(tuned), first)


def test_frozen_and_trainable_adapters_share_a_layer(tmp_path: Path) -> None:
    """A butterfly of the outputs comes to a layer that turns its inputs; both together are one after the other."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 16)).eval()
    path = lycoris(tmp_path / "style.safetensors", {"lycoris_0": 16}, butterfly=3)
    x, base = torch.randn(5, 12), net[0].weight.detach().clone()
    tuned = get_peft_model(net, OFTConfig(oft_block_size=4, target_modules=["0"], init_weights=False)).eval()
    alone = tuned(x)
    load_adapter(tuned, path, "style")
    layer = tuned.base_model.model[0]
    assert layer.frozen_map("style") is not None
    from orthotune.formats.registry import read_adapter

    (butterfly,) = read_adapter(path).transforms.values()
    own = torch.nn.functional.linear(x, butterfly.apply(base), net[0].bias)
    torch.testing.assert_close(tuned(x), own, **CLOSE)
    tuned.base_model.set_adapter(["default", "style"])
    turned = base + layer.get_delta_weight("default")
    both = torch.nn.functional.linear(x, butterfly.apply(turned), net[0].bias)
    torch.testing.assert_close(tuned(x), both, **CLOSE)
    tuned.merge_adapter(["default", "style"])
    torch.testing.assert_close(tuned(x), both, **CLOSE)
    tuned.unmerge_adapter()
    assert torch.equal(layer.get_base_layer().weight, base)
    # a gradient passes through the frozen map
    tuned.base_model.set_adapter(["default", "style"])
    tuned(x).square().sum().backward()
    assert layer.oft_R["default"].weight.grad.abs().max() > 0
    tuned.delete_adapter("style")
    tuned.set_adapter("default")
    assert torch.equal(tuned(x), alone)
    with pytest.raises(AdapterFileError, match="frozen"):
        load_adapter(tuned, path, "again")[0].save_pretrained(tmp_path / "saved", selected_adapters=["again"])


def test_wrong_models_are_refused_and_left_alone(language: Any, tmp_path: Path) -> None:
    model, path, _ = language
    other = llama(hidden_size=24).eval()
    with pytest.raises(AdapterFileError, match=r"layer 'model.layers.0.mlp.up_proj'.*\(4, 6\).*\(6, 6\) for this"):
        load_adapter(other, path)
    with pytest.raises(AdapterFileError, match=r"2 of 2 layers that the model does not have"):
        load_adapter(nn.Sequential(nn.Linear(4, 4)), path, strict=False)
    for net in (other, model):
        assert not [module for module in net.modules() if hasattr(module, "oft_R")]
    with pytest.raises(TargetError, match="int"):
        load_adapter(3, path)
    from peft import LoraConfig
    from peft import get_peft_model as stock

    lora = stock(model, LoraConfig(target_modules=["up_proj"]))
    with pytest.raises(ConfigError, match="adapters of type LORA.*merge_and_unload"):
        load_adapter(lora, path, "style")


def test_layers_that_differ_survive_saving(tmp_path: Path) -> None:
    """Blocks of 4 and of 2, one layer with a scale and one without, in one file: each layer has settings of its own."""
    from safetensors.torch import load_file, save_file

    from orthotune.formats.registry import read_adapter

    def network() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(12, 16), nn.Linear(16, 12), nn.Conv2d(4, 6, 3), nn.Linear(16, 12)).eval()

    places = {f"lycoris_{i}": str(i) for i in range(4)}
    path = lycoris(tmp_path / "style.safetensors", {"lycoris_0": 16, "lycoris_1": 12, "lycoris_3": 12})
    tensors = load_file(path)
    tensors |= {"lycoris_2.oft_blocks": torch.randn(3, 2, 2), "lycoris_2.alpha": torch.tensor(1000.0)}
    tensors["lycoris_1.rescale"] = torch.linspace(0.5, 2, 12).view(-1, 1)
    save_file(tensors, path)
    expected = merged(network(), path, places)
    tuned, report = load_adapter(network(), path)
    assert not report.frozen
    own = tuned.peft_config["default"].layer_settings
    assert own == {"1": {"magnitude": True}, "2": {"block_size": 2}}
    tuned.save_pretrained(tmp_path / "saved")
    again, _ = load_adapter(network(), tmp_path / "saved")
    known = read_adapter(tmp_path / "saved")
    for model in (tuned, again):
        plain = model.merge_and_unload()
        for name in places.values():
            weight = plain.get_submodule(name).weight
            torch.testing.assert_close(weight, expected.get_submodule(name).weight, **CLOSE)
            turned = known.layers[name].apply(network().get_submodule(name).weight)
            torch.testing.assert_close(weight, turned, **CLOSE)


@pytest.mark.parametrize(
    "folder", ["lycoris-4.1.3/boft_plain", "peft-0.21.2-boft/m2_bs4", "peft-0.12.0-boft/m2_bs4",
               "lycoris-2.0.0/diag_rescaled", "peft-0.8.2-oft/ragged_r5", "kohya-oft_flux-2024-09/split"],
)  # fmt: skip
def test_frozen_maps_are_refused_by_a_model_of_other_sizes(folder: str) -> None:
    """The layers of the fixture with one more block of inputs and of outputs."""
    case = lone(FIXTURES / folder)
    for wider in ((4, 0), (0, 24), (12, 24)):
        net = nn.Module()
        for base, name in places(case).items():
            weight = numbers(case)[f"{base}.weight"]
            out, features = weight.shape[0] + wider[0], weight.shape[1] + wider[1]
            put(net, name, nn.Linear(features, out) if base == "lin" else nn.Conv2d(features, out, 3))
        outside = "peft-0.1" not in folder and "peft-0.2" not in folder
        if wider == ((0, 24) if outside else (4, 0)) and outside:
            continue  # it turns the other side alone, and has no number that would tell
        with pytest.raises((AdapterFileError, BlockSizeError)):
            load_adapter(net, case.adapter)
        assert not [module for module in net.modules() if hasattr(module, "oft_R")]


def test_a_frozen_map_moves_to_where_the_weight_is() -> None:
    transform = lone(FIXTURES / "kohya-oft_flux-2024-09/split").read().transforms
    (split,) = transform.values()
    assert placed(split, torch.device("cpu")) is split
    moved = placed(split, torch.device("meta"))
    assert all(part.numbers.is_meta for part in moved.parts)


def test_names_in_a_file_are_shown_as_text(tmp_path: Path) -> None:
    path = lycoris(tmp_path / "style.safetensors", {"lycoris_0": 16, "lycoris_\x1b[31mred": 16})
    with pytest.raises(AdapterFileError) as caught:
        load_adapter(nn.Sequential(nn.Linear(12, 16)), path)
    assert "\x1b" not in str(caught.value)
    _, report = load_adapter(nn.Sequential(nn.Linear(12, 16)), path, strict=False)
    assert "\x1b" not in str(report) and report.unmatched == ["lycoris_\x1b[31mred"]
