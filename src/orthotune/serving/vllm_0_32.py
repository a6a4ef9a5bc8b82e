"""vLLM 0.32: its layers with slots for rotations beside those for LoRA. No other module knows its classes.

The engine keeps its own slots, cache of adapters and flags. What is wrapped: ``from_layer`` makes subclasses of its
layers; the manager reserves memory when it is made and fills a slot when it activates an adapter; the worker reads an
adapter that is no LoRA; the wrapper of the LoRA kernels keeps which token has which slot.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import torch
import vllm.lora.utils
from torch import Tensor
from vllm import envs
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm.lora.lora_model import LoRAModel
from vllm.lora.model_manager import LoRAModelManager
from vllm.lora.punica_wrapper.punica_base import PunicaWrapperBase
from vllm.lora.worker_manager import WorkerLoRAManager
from vllm.model_executor.layers.linear import UnquantizedLinearMethod

from orthotune.errors import ConfigError, UnsupportedLayerError
from orthotune.formats.registry import read_adapter
from orthotune.serving.layer_map import LayerMap, as_dtype, cut
from orthotune.serving.reading import is_rotation, maps_of
from orthotune.serving.settings import ServingSettings
from orthotune.serving.slots import LayerSlots
from orthotune.serving.step import Step

_logger = logging.getLogger("vllm.plugins.orthotune")
#: number -> layer, for the operation that stands for a layer in compiled code
_LAYERS: WeakValueDictionary[int, Any] = WeakValueDictionary()


class RotatedModel(LoRAModel):
    """An adapter of rotations where the engine keeps its LoRA adapters: no LoRA weights, and maps instead.

    Args:
        number: the engine's number of the adapter.
        maps: name of a layer of the engine -> the map of each of its slices.
    """

    def __init__(self, number: int, maps: dict[str, list[LayerMap | None]]) -> None:
        super().__init__(number, 0, {})
        self.maps = maps


@dataclass
class _Slots:
    """What the manager and its layers share: which slots hold rotations, and why none may."""

    rotated: set[int]
    refusal: str | None
    served: dict[str, RotatedLinear]


@dataclass(frozen=True)
class Span:
    """Which outputs of a slice a rank computes: from ``start`` to ``stop`` of ``full``."""

    start: int
    stop: int
    full: int


class RotatedLinear(BaseLinearLayerWithLoRA):
    """Rotations for a linear layer of the engine; :func:`_rotating` puts it before each of the engine's classes."""

    orthotune_slots: LayerSlots | None = None
    orthotune_shared: _Slots | None = None
    orthotune_number = 0

    def _apply_sync(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return self._orthotune_apply(x, bias, False)

    def _apply_base_forward(self, x: Tensor) -> Tensor:
        return self._orthotune_apply(x, None if self.base_layer.skip_bias_add else self.base_layer.bias, True)

    def _orthotune_apply(self, x: Tensor, bias: Tensor | None, forward: bool) -> Tensor:
        if self.orthotune_slots is not None and torch.compiler.is_compiling():
            return torch.ops.orthotune.served_linear(
                x, bias, self.orthotune_number, sum(self.orthotune_slots.sizes), forward
            )
        return self.orthotune_run(x, bias, forward)

    def orthotune_run(self, x: Tensor, bias: Tensor | None, forward: bool) -> Tensor:
        """The layer's output, each token under its own adapter.

        Args:
            x: ``(..., in)``.
            bias: that the base adds, or None.
            forward: whether the base's product is its own forward.
        """
        slots, shared = self.orthotune_slots, self.orthotune_shared
        step: Step | None = getattr(self.punica_wrapper, "orthotune_step", None)
        on_host = x.device.type == "cpu"
        here = step.present if step is not None else frozenset()
        if on_host and slots is not None:
            # On a device every batch with an adapter of either kind runs the same operations: a graph that is captured
            # while no slot holds a rotation is replayed when one does.
            here = here.intersection(slots.held)
        if slots is None or shared is None or step is None or not here:
            return super()._apply_base_forward(x) if forward else super()._apply_sync(x, bias)
        product = partial(self._orthotune_product, bias, forward)
        flat = x.reshape(-1, x.shape[-1])
        if on_host:
            y = slots.run(flat, bias, step, product)
        else:
            index = self.punica_wrapper._token_lora_indices[: flat.shape[0]]
            y = slots.run_static(flat, bias, index, self._orthotune_slices(bias, product))
        y = y.reshape(*x.shape[:-1], -1)
        if on_host and step.present <= shared.rotated:
            return y  # no token has a LoRA
        return self._apply_lora_to_output(x, y)

    def _orthotune_product(self, bias: Tensor | None, forward: bool, x: Tensor) -> Tensor:
        if not forward:
            return self._get_quant_method().apply(self.base_layer, x, bias)
        y = self.base_layer(x)
        return y[0] if isinstance(y, tuple) else y

    def _orthotune_slices(self, bias: Tensor | None, product: Callable[[Tensor], Tensor]) -> list[Any]:
        """The product of each slice: of its rows of the weight where the weight is plain."""
        assert self.orthotune_slots is not None
        spans = self.orthotune_slots.spans
        if len(spans) == 1:
            return [product]
        weight = getattr(self.base_layer, "weight", None)
        if (
            not isinstance(self.base_layer.quant_method, UnquantizedLinearMethod)
            or weight is None
            or not weight.numel()
        ):
            return [lambda x, own=slice(*span): product(x)[:, own] for span in spans]
        return [
            partial(
                torch.nn.functional.linear, weight=weight[slice(*span)],
                bias=None if bias is None else bias[slice(*span)],
            )
            for span in spans
        ]  # fmt: skip


def _rotating(own: type) -> type:
    """A class of the engine with rotations, or the class itself where it is no linear layer with one product."""
    if not issubclass(own, BaseLinearLayerWithLoRA) or "Sharded" in own.__name__:
        return own
    return type(own.__name__, (RotatedLinear, own), {"__module__": __name__})


def spans(layer: Any) -> list[Span | None]:
    """The outputs that the rank of a layer computes, of each slice.

    Args:
        layer: a linear layer of the engine.

    Returns:
        One for each slice; None where the rank holds runs of one slice that do not follow each other.
    """
    if layer.n_slices > 1:
        full = list(layer.base_layer.output_sizes)
        if hasattr(layer, "kv_shard_id"):  # with fewer key heads than ranks, the base counts copies of them
            base = layer.base_layer
            heads = base.total_num_kv_heads * base.head_size
            full = [base.total_num_heads * base.head_size, heads, heads]
        sizes, numbers = layer.output_slices, layer.output_ids
        return [
            Span(size * number, size * (number + 1), all_of)
            for size, number, all_of in zip(sizes, numbers, full, strict=True)
        ]
    held, full_size = layer.output_size, layer.base_layer.output_size
    if held == full_size:
        return [Span(0, held, held)]
    several = getattr(layer, "is_merged_col_linear", False) or hasattr(layer, "q_proj_total_size")
    return [None if several else Span(held * layer.tp_rank, held * (layer.tp_rank + 1), full_size)]


def _input_span(layer: Any) -> Span:
    full = layer.base_layer.input_size
    held = layer.input_size
    start = 0 if held == full else held * layer.tp_rank
    return Span(start, start + held, full)


def _reserve(manager: Any, config: Any) -> None:
    settings = ServingSettings.of(config.additional_config if isinstance(config.additional_config, dict) else None)
    refusal = None
    if manager.lora_config.fully_sharded_loras:
        refusal = "an engine that was started with fully_sharded_loras"
    elif envs.VLLM_LORA_ENABLE_DUAL_STREAM:
        refusal = "an engine that was started with VLLM_LORA_ENABLE_DUAL_STREAM"
    elif config.parallel_config.pipeline_parallel_size > 1:
        refusal = "an engine with several pipeline stages, each of which has a part of the adapter's layers"
    shared = manager.orthotune = _Slots(set(), refusal, {})
    reserved = 0
    for name, layer in manager.modules.items():
        if refusal is None and isinstance(layer, RotatedLinear):
            inputs = _input_span(layer)
            sizes = (
                zip(layer.output_slices, (span.full if span else size for span, size in
                    zip(spans(layer), layer.output_slices, strict=True)), strict=True)
                if layer.n_slices > 1 else [(layer.output_size, layer.base_layer.output_size)]
            )  # fmt: skip
            layer.orthotune_slots = LayerSlots(
                name, manager.lora_slots, (layer.input_size, inputs.full), list(sizes), settings,
                manager.lora_config.lora_dtype, layer.device,
            )  # fmt: skip
            layer.orthotune_shared = shared
            shared.served[name] = layer
            layer.orthotune_number = id(layer)
            _LAYERS[id(layer)] = layer
            reserved += layer.orthotune_slots.nbytes
    if refusal is None:
        mib = reserved / 2**20
        _logger.info(
            "OFT adapters are served unmerged: %d slots reserve %.1f MiB of the model's device (block_sizes %s, outputs"
            " %s), and at most %d adapters of at most %.1f MiB each are kept in the host's memory.",
            manager.lora_slots, mib, list(settings.block_sizes), settings.outputs, manager.capacity,
            mib / manager.lora_slots,
        )  # fmt: skip
    else:
        _logger.warning("OFT adapters are refused by %s; LoRA adapters are served as usual.", refusal)


def _names(manager: Any) -> dict[str, tuple[str, int | None]]:
    """Name of a layer in an adapter -> the engine's layer, and which of its slices; None for all of them."""
    found: dict[str, tuple[str, int | None]] = {}
    for name, layer in manager.orthotune.served.items():
        found[name] = (name, None)
        parts = manager.packed_modules.get(name, [])
        if len(parts) == layer.n_slices:
            found |= {part: (name, index) for index, part in enumerate(parts)}
    return found


def read(manager: Any, path: str) -> dict[str, list[LayerMap | None]]:
    """The maps of an adapter for the layers of an engine, cut for its rank and in its dtype.

    Args:
        manager: the engine's, which has reserved memory.
        path: of the adapter.

    Raises:
        AdapterFileError: the file is damaged, or of no known format.
        ConfigError: it belongs to another base, does not fit what is reserved, or the engine refuses rotations.
        UnsupportedLayerError: it holds what cannot be served unmerged.
    """
    shared: _Slots = manager.orthotune
    if shared.refusal is not None:
        raise ConfigError(
            f"the OFT adapter {path}", got=shared.refusal, do="Start the engine otherwise, or serve a merged model"
        )
    state = read_adapter(path)
    for warning in state.warnings:
        _logger.warning("%s: %s", path, warning)
    names = _names(manager)
    sizes = {}
    for name, (module, index) in names.items():
        layer = shared.served[module]
        slices = spans(layer)
        outputs = sum(span.full if span else layer.base_layer.output_size for span in slices)
        span = slices[index] if index is not None else None
        sizes[name] = (_input_span(layer).full, span.full if span else outputs)
    found: dict[str, list[LayerMap | None]] = {}
    for name, complete in maps_of(state, sizes, partial(_renamed, manager.model)).items():
        module, index = names[name]
        layer = shared.served[module]
        own = found.setdefault(module, [None] * layer.n_slices)
        for slice_index, part in enumerate(_parts(layer, complete, index, name)):
            if part is not None:
                own[slice_index] = as_dtype(part, manager.lora_config.lora_dtype)
    for module, maps in found.items():
        layer = shared.served[module]
        if layer.device.type != "cpu" and any(own is not None and own.operator is not None for own in maps):
            raise UnsupportedLayerError(
                f"serving layer '{module}' unmerged on {layer.device.type}", got="a map that is not made of blocks",
                needed="block rotations", do="Merge the adapter and serve the merged model: orthotune merge",
            )  # fmt: skip
        assert layer.orthotune_slots is not None
        layer.orthotune_slots.check(maps, getattr(layer.base_layer, "bias", None) is not None)
    return found


def _parts(layer: Any, complete: LayerMap, index: int | None, name: str) -> list[LayerMap | None]:
    """The map of each slice of a layer for its rank; None for slices that it is not for."""
    inputs, own = _input_span(layer), spans(layer)
    found: list[LayerMap | None] = []
    first = 0
    for number, span in enumerate(own):
        if index is not None and index != number:
            found.append(None)
            continue
        if span is None:
            if complete.outputs is not None or complete.scale is not None or complete.bias is not None:
                raise UnsupportedLayerError(
                    f"layer '{name}' cut by tensor-parallel rank",
                    got="a change of its outputs, of which a rank has several runs",
                    needed="a rotation of its inputs", do="Use one rank, or serve the merged model",
                )  # fmt: skip
            span = Span(0, 0, 0)
        start = 0 if index is not None else first
        first += span.full
        outputs = (start + span.start, start + span.stop)
        found.append(cut(complete, (inputs.start, inputs.stop), outputs, name))
    return found


def _renamed(model: Any, name: str) -> str:
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    if mapper is None:
        return name
    mapped = mapper.get_rename_mapper()._map_name(f"{name}.weight")
    return name if mapped is None else mapped.removesuffix(".weight")


def _fill(manager: Any, number: int) -> None:
    """Put an adapter that was activated into the slots of all layers."""
    shared: _Slots = manager.orthotune
    slot, adapter = manager.lora_index_to_id.index(number), manager._registered_adapters[number]
    rotated = isinstance(adapter, RotatedModel)
    for name, layer in shared.served.items():
        maps: Sequence[LayerMap | None] | None = adapter.maps.get(name) if rotated else None
        assert layer.orthotune_slots is not None
        if maps is None:
            layer.orthotune_slots.clear(slot)
        else:
            # Of ranks that cut the inputs, the first alone adds the bias.
            later = layer.tp_rank > 0 and layer.input_size != layer.base_layer.input_size
            layer.orthotune_slots.put(slot, maps, None if later else getattr(layer.base_layer, "bias", None))
    (shared.rotated.add if rotated else shared.rotated.discard)(slot)


def _manager_made(original: Any, manager: Any, *args: Any, **kwargs: Any) -> None:
    original(manager, *args, **kwargs)
    config = kwargs["vllm_config"] if "vllm_config" in kwargs else args[-1]
    _reserve(manager, config)


def _activated(original: Any, manager: Any, lora_id: int) -> bool:
    done = original(manager, lora_id)
    if done:
        _fill(manager, lora_id)
    return done


def _packed(original: Any, manager: Any, adapter: Any) -> None:
    if not isinstance(adapter, RotatedModel):  # which has no LoRA weights to be packed
        original(manager, adapter)


def _loaded(original: Any, worker: Any, request: Any) -> Any:
    path = vllm.lora.utils.get_adapter_absolute_path(request.lora_path)
    if not is_rotation(path):
        return original(worker, request)
    return RotatedModel(request.lora_int_id, read(worker._adapter_manager, path))


def _mapped(original: Any, wrapper: Any, mapping: Any, index_to_id: list[int | None], *args: Any, **more: Any) -> None:
    original(wrapper, mapping, index_to_id, *args, **more)
    slots = {number: slot for slot, number in enumerate(index_to_id) if number is not None}
    tokens = [slots[number] if number > 0 else -1 for number in mapping.index_mapping]
    wrapper.orthotune_step = Step(tokens, torch.device(wrapper.device))


def _wrap(owner: type, name: str, around: Callable[..., Any]) -> None:
    original = getattr(owner, name)

    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        return around(original, self, *args, **kwargs)

    setattr(owner, name, wrapped)


def _served_linear(x: Tensor, bias: Tensor | None, layer: int, outputs: int, forward: bool) -> Tensor:
    return _LAYERS[layer].orthotune_run(x, bias, forward)


def _served_linear_shape(x: Tensor, bias: Tensor | None, layer: int, outputs: int, forward: bool) -> Tensor:
    return x.new_empty(*x.shape[:-1], outputs)


_REGISTERED: list[bool] = []


def register() -> None:
    """Make the classes of vLLM 0.32 in this process serve rotations; once, however often it is called."""
    if _REGISTERED:
        return
    _REGISTERED.append(True)
    signature = "(Tensor x, Tensor? bias, int layer, int outputs, bool forward) -> Tensor"
    torch.library.define("orthotune::served_linear", signature)
    torch.library.impl("orthotune::served_linear", "CompositeExplicitAutograd", _served_linear)
    torch.library.register_fake("orthotune::served_linear", _served_linear_shape)
    vllm.lora.utils._all_lora_classes = tuple(_rotating(own) for own in vllm.lora.utils._all_lora_classes)
    _wrap(LoRAModelManager, "__init__", _manager_made)
    _wrap(LoRAModelManager, "activate_adapter", _activated)
    _wrap(LoRAModelManager, "_create_merged_loras_inplace", _packed)
    _wrap(WorkerLoRAManager, "_load_adapter", _loaded)
    _wrap(PunicaWrapperBase, "_update_base_metadata", _mapped)
