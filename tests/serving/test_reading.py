"""Files as the maps of an engine's layers, and the settings of what is reserved."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from orthotune.errors import ConfigError, UnsupportedLayerError
from orthotune.files.json_file import write_json
from orthotune.formats.adapter_state import AdapterState, LayerState
from orthotune.serving.reading import is_rotation, maps_of
from orthotune.serving.settings import ServingSettings
from orthotune.serving.vllm_plugin import module_for

SIZES = {"model.layers.0.q_proj": (8, 4), "model.layers.0.o_proj": (4, 8)}


def _state(*names: str, **more: torch.Tensor) -> AdapterState:
    return AdapterState({name: LayerState({"": torch.ones(2, 6)}) for name in names}, other=more)


@pytest.mark.parametrize("name", ["model.layers.0.q_proj", "lora_unet_model_layers_0_q_proj", "layers.0.q_proj"])
def test_names_of_tools_and_of_the_engine_are_found(name: str) -> None:
    found = maps_of(_state(name), SIZES, lambda own: own if own.startswith("model.") else f"model.{own}")
    assert list(found) == ["model.layers.0.q_proj"] and found["model.layers.0.q_proj"].inputs.shape == (2, 4, 4)


def test_layers_of_another_model_are_named() -> None:
    with pytest.raises(
        ConfigError, match=r"2 layers that the engine's model does not have .*'?model\.layers\.7\.q_proj"
    ):
        maps_of(_state("model.layers.0.q_proj", "model.layers.7.q_proj", "lm_head"), SIZES, str)


def test_biases_are_read_and_other_tensors_refused() -> None:
    name = "base_model.model.model.layers.0.q_proj"
    state = _state("model.layers.0.q_proj", **{f"{name}.base_layer.bias": torch.ones(4)})
    assert maps_of(state, SIZES, str)["model.layers.0.q_proj"].bias.tolist() == [1.0] * 4
    with pytest.raises(ConfigError, match=r"q_proj\.bias'. Found: shape \[5\]. Needed: \[4\]"):
        maps_of(_state("model.layers.0.q_proj", **{f"{name}.bias": torch.ones(5)}), SIZES, str)
    with pytest.raises(UnsupportedLayerError, match="1 further tensors: .*score.weight.*orthotune merge"):
        maps_of(_state("model.layers.0.q_proj", **{"score.weight": torch.ones(5)}), SIZES, str)


def test_a_table_takes_the_map_of_an_embedding_and_no_other() -> None:
    sizes = {"embed_tokens": (8, 8), "lm_head": (8, 30)}
    table = LayerState({"": torch.ones(2, 6)}, magnitude=torch.arange(8.0), embedding=True)
    found = maps_of(AdapterState({"embed_tokens": table}), sizes, str, {"embed_tokens"})["embed_tokens"]
    assert found.inputs.shape == (2, 4, 4) and found.scale.tolist() == [n - 1.0 for n in range(8)]
    with pytest.raises(ConfigError, match=r"'lm_head'. Found: a map of an embedding. Needed: that of a linear layer"):
        maps_of(AdapterState({"lm_head": table}), sizes, str, {"embed_tokens"})
    with pytest.raises(ConfigError, match=r"'embed_tokens'. Found: a map of a linear layer. Needed: that of an emb"):
        maps_of(_state("embed_tokens"), sizes, str, {"embed_tokens"})
    wide = LayerState({"": torch.ones(3, 6)}, embedding=True)
    with pytest.raises(ConfigError, match=r"'embed_tokens'. Found: a rotation of 12 features. Needed: 8"):
        maps_of(AdapterState({"embed_tokens": wide}), sizes, str, {"embed_tokens"})


def test_the_weight_of_the_base_beside_an_adapter_is_passed_over_and_another_is_refused() -> None:
    weight = torch.arange(240.0).view(30, 8)
    name = "base_model.model.embed_tokens.base_layer.weight"
    state = AdapterState(
        {"embed_tokens": LayerState({"": torch.ones(2, 6)}, embedding=True)}, other={name: weight}
    )  # fmt: skip
    sizes, tables = {"embed_tokens": (8, 8)}, {"embed_tokens"}
    assert list(maps_of(state, sizes, str, tables, lambda layer, own: torch.equal(own, weight))) == ["embed_tokens"]
    with pytest.raises(UnsupportedLayerError, match=r"1 further tensors: .*embed_tokens\.base_layer\.weight"):
        maps_of(state, sizes, str, tables, lambda layer, own: False)


def test_the_engine_keeps_its_own_lora_files(tmp_path: Path) -> None:
    for kind in ("LORA", "OFT", "HRA"):
        (tmp_path / kind).mkdir()
        write_json(tmp_path / kind / "adapter_config.json", {"peft_type": kind})
    (tmp_path / "none").mkdir()
    save_file({"a.oft_R.weight": torch.ones(1, 1)}, tmp_path / "style.safetensors")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "adapter_config.json").write_text("{", encoding="utf-8")
    taken = [name for name in ("LORA", "OFT", "HRA", "none", "style.safetensors", "broken", "missing")
             if is_rotation(tmp_path / name)]  # fmt: skip
    assert taken == ["OFT", "HRA", "style.safetensors", "broken"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"block_size": [32]}, "block_sizes"),
        ({"block_sizes": [1]}, "at least 2"),
        ({"block_sizes": []}, "at least 2"),
        ({"outputs": "all"}, "scale or rotate"),
        ([32], "a mapping"),
    ],
)
def test_settings_that_are_none_are_refused(options: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ServingSettings.of({"orthotune": options})


def test_what_a_layer_reserves_holds_every_size() -> None:
    settings = ServingSettings.of({"orthotune": {"block_sizes": [32, 48]}, "another": 1})
    assert [settings.block_size(n) for n in (576, 1536, 100, 7)] == [96, 96, 50, 7]
    assert settings.block_size(576, 288) == 96 and settings.block_size(576, 192 // 2) == 96
    assert settings.block_size(576, 64) == 32  # 48 does not divide what a rank has
    assert ServingSettings.of(None) == ServingSettings.of({"orthotune": {"block_sizes": 32}})


@pytest.mark.parametrize("version", ["0.31.2", "0.33.0", "1.0", "dev"])
def test_versions_that_are_not_tested_are_refused(version: str) -> None:
    with pytest.raises(ConfigError, match=f"vLLM {version}. Needed: a version that it is tested with: 0.32"):
        module_for(version)
