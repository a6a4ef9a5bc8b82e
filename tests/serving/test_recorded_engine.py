"""The plug-in against the recorded classes of vLLM 0.32: what it wraps fits, and an adapter goes into its layers.

``tests/vllm`` has the same against the engine itself, in an environment of its own (``make test-vllm``).
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from orthotune import OFTConfig, get_peft_model
from orthotune.errors import ConfigError
from orthotune.serving.vllm_plugin import TESTED, register
from tests.support import recorded_engine

if importlib.util.find_spec("vllm") is not None:
    pytest.skip("the engine itself is here: make test-vllm", allow_module_level=True)

#: float32: products in another order
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def _wrapped(plugin: ModuleType, monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str], Callable[..., Any]]:
    """Class and method -> what the plug-in puts around it."""
    found: dict[tuple[str, str], Callable[..., Any]] = {}
    own = plugin._wrap

    def noted(owner: type, name: str, around: Callable[..., Any]) -> None:
        found[owner.__name__, name] = around
        own(owner, name, around)

    monkeypatch.setattr(plugin, "_wrap", noted)
    plugin.register()
    plugin._manager_made(lambda *args, **kwargs: None, _manager({}), vllm_config=_config())
    return found


def test_the_record_is_of_a_tested_version() -> None:
    assert tuple(map(int, recorded_engine.recorded()["version"].split("."))) in TESTED


def test_what_is_wrapped_takes_what_the_engine_gives(plugin: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    methods = {
        (name, method): recorded_engine.signature(parameters)
        for classes in recorded_engine.recorded()["classes"].values()
        for name, facts in classes.items()
        for method, parameters in facts["methods"].items()
    }
    found = _wrapped(plugin, monkeypatch)
    assert len(found) == 8
    for place, around in found.items():
        names = list(methods[place].parameters)
        assert names[0] == "self"
        bound = inspect.signature(around).bind(lambda *args: None, *names)
        if isinstance(around, partial):  # which of the arguments has the states of the tokens
            assert names[1:][around.args[0]] == "hidden_states"
        if place == ("LoRAModelManager", "__init__"):
            assert names[-1] == "vllm_config"  # read by its name, or as the last one
        if place == ("PunicaWrapperBase", "_update_base_metadata"):
            assert bound.arguments["mapping"] == "mapping" and bound.arguments["index_to_id"] == "lora_index_to_id"


def test_what_is_overridden_takes_what_the_engine_gives(plugin: ModuleType) -> None:
    recorded = recorded_engine.recorded()["classes"]
    for module, own, engines in (
        ("vllm.lora.layers.base_linear", plugin.RotatedLinear, "BaseLinearLayerWithLoRA"),
        ("vllm.lora.layers.logits_processor", plugin.RotatedHead, "LogitsProcessorWithLoRA"),
        ("vllm.lora.layers.vocab_parallel_embedding", plugin.RotatedTable, "VocabParallelEmbeddingWithLoRA"),
    ):
        methods = recorded[module][engines]["methods"]
        overridden = [name for name in methods if name in vars(own)]
        assert overridden, own
        for name in overridden:
            theirs, ours = (recorded_engine.signature(methods[name]), inspect.signature(vars(own)[name]))
            assert list(theirs.parameters) == list(ours.parameters), (own, name)


def test_registering_replaces_the_layers_once(plugin: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    utils = sys.modules["vllm.lora.utils"]
    before = {own.__name__ for own in utils._all_lora_classes}
    register()
    first = utils._all_lora_classes
    register()
    assert utils._all_lora_classes is first and {own.__name__ for own in first} == before
    rotated = {own.__name__ for own in first if issubclass(own, plugin.RotatedLayer)}
    assert {"QKVParallelLinearWithLoRA", "MergedColumnParallelLinearWithLoRA", "RowParallelLinearWithLoRA",
            "ColumnParallelLinearWithLoRA", "VocabParallelEmbeddingWithLoRA"} <= rotated  # fmt: skip
    assert not {name for name in rotated if "Sharded" in name}


# An adapter in the layers of an attention: q, k and v of 64 features in one product, and a row-parallel output.

SIZES = {"q_proj": 64, "k_proj": 32, "v_proj": 32}


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        for name, size in SIZES.items():
            setattr(self, name, nn.Linear(64, size))
        self.o_proj = nn.Linear(64, 64, bias=False)


class _Base(nn.Module):
    """A linear layer of the engine: its product, its sizes, and whether it adds the bias itself."""

    skip_bias_add = False
    quant_method = SimpleNamespace(apply=lambda layer, x, bias: linear(x, layer.weight, bias))

    def __init__(self, layers: list[nn.Linear], **more: Any) -> None:
        super().__init__()
        self.weight = torch.cat([layer.weight.detach() for layer in layers])
        held = [layer.bias.detach() for layer in layers if layer.bias is not None]
        self.bias = torch.cat(held) if held else None
        self.input_size, self.output_size = self.weight.shape[1], self.weight.shape[0]
        self.output_sizes = [layer.out_features for layer in layers]
        for name, value in more.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def _layer(plugin: ModuleType, kind: str, base: _Base, **facts: Any) -> Any:
    """A layer as the engine makes it, without what LoRA needs."""
    own = next(one for one in sys.modules["vllm.lora.utils"]._all_lora_classes if one.__name__ == kind)
    layer = plugin._rotating(own)()
    layer.base_layer, layer.tp_rank, layer.punica_wrapper = base, 0, SimpleNamespace(device="cpu")
    layer.input_size, layer.output_size, layer.n_slices = base.input_size, base.output_size, 1
    for name, value in facts.items():
        setattr(layer, name, value)
    object.__setattr__(layer, "_get_quant_method", lambda: base.quant_method)
    return layer


def _config(**settings: Any) -> Any:
    return SimpleNamespace(
        additional_config={"orthotune": settings} if settings else {},
        parallel_config=SimpleNamespace(pipeline_parallel_size=1),
    )


def _manager(layers: dict[str, Any], **more: Any) -> Any:
    return SimpleNamespace(**{
        "modules": layers, "packed_modules": {"qkv_proj": list(SIZES)}, "lora_slots": 2, "capacity": 2,
        "device": torch.device("cpu"), "model": nn.Module(), "lora_index_to_id": [7, 9], "_registered_adapters": {},
        "lora_config": SimpleNamespace(fully_sharded_loras=False, lora_dtype=torch.float32), **more,
    })  # fmt: skip


def _adapter(folder: Path, seed: int, **config: Any) -> nn.Module:
    """An adapter in a file, and the model with it merged in."""
    options = {"target_modules": [*SIZES, "o_proj"], "oft_block_size": 32, **config}
    model = get_peft_model(_Attention(), OFTConfig(**options))
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    merged: nn.Module = model.merge_and_unload()
    return merged


@pytest.fixture
def served(plugin: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
    def product(layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """What the engine does where no token has an adapter of the layer, and no LoRA is loaded."""
        return linear(x, layer.base_layer.weight, bias)

    monkeypatch.setattr(sys.modules["vllm.lora.layers.base_linear"].BaseLinearLayerWithLoRA, "_apply_sync", product)
    attention = _Attention()
    heads = {"total_num_heads": 2, "total_num_kv_heads": 1, "head_size": 32}
    qkv = _Base([attention.q_proj, attention.k_proj, attention.v_proj], **heads)
    slices = {"n_slices": 3, "output_slices": (64, 32, 32), "output_ids": (0, 0, 0), "kv_shard_id": 0}
    layers = {
        "qkv_proj": _layer(plugin, "MergedQKVParallelLinearWithLoRA", qkv, **slices),
        "o_proj": _layer(plugin, "RowParallelLinearWithLoRA", _Base([attention.o_proj])),
    }  # fmt: skip
    manager = _manager(layers)
    plugin._reserve(manager, _config(block_sizes=[32], outputs="rotate"))
    return manager


@pytest.mark.parametrize(
    "config", [{}, {"bias": "oft_only", "magnitude": True}, {"side": "out", "target_modules": ["q_proj", "v_proj"]}]
)
def test_two_adapters_and_the_base_in_one_batch(
    plugin: ModuleType, served: Any, config: dict[str, Any], tmp_path: Path
) -> None:
    models = {-1: _Attention(), 0: _adapter(tmp_path / "a", 1, **config), 1: _adapter(tmp_path / "b", 2, **config)}
    for slot, number in enumerate(served.lora_index_to_id):
        maps = plugin.read(served, str(tmp_path / "ab"[slot]))
        served._registered_adapters[number] = plugin.RotatedModel(number, maps)
        plugin._activated(lambda manager, number: True, served, number)
    mapping = SimpleNamespace(index_mapping=[7, 0, 9, 9, 0], prompt_mapping=[7, 0, 9])
    x, slots = torch.randn(5, 64, generator=torch.Generator().manual_seed(3)), [0, -1, 1, 1, -1]
    with torch.no_grad():
        for name, layer in served.modules.items():
            plugin._mapped(lambda *args: None, layer.punica_wrapper, mapping, served.lora_index_to_id, 2)
            found = layer._apply_sync(x, layer.base_layer.bias)
            parts = list(SIZES) if name == "qkv_proj" else [name]
            expected = torch.stack([
                torch.cat([models[slot].get_submodule(part)(row) for part in parts])
                for slot, row in zip(slots, x, strict=True)
            ])  # fmt: skip
            torch.testing.assert_close(found, expected, **CLOSE)
            plain = layer.base_layer(x)
            assert torch.equal(found[[1, 4]], plain[[1, 4]]), "rows of the base have other bits"


def test_an_adapter_of_another_size_is_refused_with_the_setting(
    plugin: ModuleType, served: Any, tmp_path: Path
) -> None:
    _adapter(tmp_path / "small", 1, oft_block_size=64)
    with pytest.raises(ConfigError, match=r"Found: blocks of 64.*block_sizes.*\[32, 64\]"):
        plugin.read(served, str(tmp_path / "small"))


def test_an_engine_that_cannot_serve_rotations_says_why(plugin: ModuleType, served: Any, tmp_path: Path) -> None:
    _adapter(tmp_path / "a", 1)
    served.lora_config.fully_sharded_loras = True
    plugin._reserve(served, _config())
    with pytest.raises(ConfigError, match="Found: an engine that was started with fully_sharded_loras"):
        plugin.read(served, str(tmp_path / "a"))
