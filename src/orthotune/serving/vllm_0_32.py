"""vLLM 0.32: its layers with slots for rotations beside those for LoRA. No other module knows its classes.

The engine keeps its own slots, cache of adapters and flags. What is wrapped: ``from_layer`` makes subclasses of its
layers; the manager reserves memory when it is made and fills a slot when it activates an adapter; the worker reads an
adapter that is no LoRA; the wrapper of the LoRA kernels keeps which token has which slot.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import torch
import vllm.lora.utils
from torch import Tensor
from vllm import envs
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm.lora.layers.logits_processor import LogitsProcessorWithLoRA
from vllm.lora.layers.vocab_parallel_embedding import VocabParallelEmbeddingWithLoRA
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
#: the hidden states of all tokens of a step, while the engine computes log-probabilities of parts of its prompts
_PROMPTS: list[Tensor] = []
#: one entry when the classes of this process are wrapped, two when those that run models are
_REGISTERED: list[bool] = []


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
    served: dict[str, RotatedLayer]


@dataclass(frozen=True)
class Span:
    """Which outputs of a slice a rank computes: from ``start`` to ``stop`` of ``full``."""

    start: int
    stop: int
    full: int

    @property
    def size(self) -> int:
        """How many the rank has."""
        return self.stop - self.start


class RotatedLayer:
    """What every layer with rotations has; :func:`_rotating` puts one before each of the engine's classes."""

    orthotune_slots: LayerSlots | None = None
    orthotune_shared: _Slots | None = None
    orthotune_number = 0
    orthotune_outputs_rotate = True

    def orthotune_input_span(self) -> Span:
        """The inputs that the rank gets."""
        raise NotImplementedError

    def orthotune_spans(self) -> list[Span | None]:
        """The outputs that the rank computes, of each slice; None for runs that do not follow each other."""
        raise NotImplementedError

    def orthotune_sizes(self) -> list[tuple[int, int]]:
        """How many outputs of each slice the rank computes, and how many the complete layer has."""
        return [(span.size, span.full) for span in self.orthotune_spans() if span is not None]

    def orthotune_bias(self) -> Tensor | None:
        """The bias of the base, to which a trained one is compared."""
        return None

    def orthotune_weight(self) -> tuple[Tensor, int] | None:
        """The rows of a table of all tokens that the rank holds, and the number of the first; None if quantized."""
        return None


class RotatedLinear(RotatedLayer, BaseLinearLayerWithLoRA):
    """Rotations for a linear layer."""

    def orthotune_input_span(self) -> Span:
        full, held = self.base_layer.input_size, self.input_size
        start = 0 if held == full else held * self.tp_rank
        return Span(start, start + held, full)

    def orthotune_spans(self) -> list[Span | None]:
        return spans(self)

    def orthotune_sizes(self) -> list[tuple[int, int]]:
        if self.n_slices == 1:
            return [(self.output_size, self.base_layer.output_size)]
        own = zip(self.output_slices, spans(self), strict=True)
        return [(size, span.full if span else size) for size, span in own]

    def orthotune_bias(self) -> Tensor | None:
        return getattr(self.base_layer, "bias", None)

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


class RotatedTable(RotatedLayer, VocabParallelEmbeddingWithLoRA):
    """Rotations for an embedding: what it looks up is rotated, after the ranks have put their parts together."""

    def orthotune_input_span(self) -> Span:
        return Span(0, self.base_layer.embedding_dim, self.base_layer.embedding_dim)

    def orthotune_spans(self) -> list[Span | None]:
        return [self.orthotune_input_span()]

    def orthotune_weight(self) -> tuple[Tensor, int] | None:
        return _table_rows(self.base_layer)

    def forward(self, x: Tensor) -> Tensor:
        """The vectors of tokens, each under its own adapter.

        Args:
            x: ``(tokens,)``.
        """
        y = super().forward(x)
        if self.orthotune_slots is not None and torch.compiler.is_compiling():
            return torch.ops.orthotune.served_table(y, self.orthotune_number)
        return self.orthotune_run(y)

    def orthotune_run(self, y: Tensor) -> Tensor:
        """The vectors, rotated.

        Args:
            y: ``(tokens, features)``, those of the base, or those with a LoRA.
        """
        slots = self.orthotune_slots
        step: Step | None = getattr(self.punica_wrapper, "orthotune_step", None)
        if slots is None or step is None or not step.present:
            return y
        if y.device.type == "cpu":
            return slots.run(y, None, step, _same) if step.present & slots.held.keys() else y
        return slots.run_static(y, None, self.punica_wrapper._token_lora_indices[: len(y)], [_same])


class RotatedHead(RotatedLayer, LogitsProcessorWithLoRA):
    """Rotations for the head: the states that it gets are rotated, and its outputs scaled where all of them are."""

    orthotune_outputs_rotate = False
    orthotune_lm_head: Sequence[Any] = ()

    def orthotune_input_span(self) -> Span:
        return Span(0, self.hidden_size, self.hidden_size)

    def orthotune_spans(self) -> list[Span | None]:
        size = self.base_layer.vocab_size
        return [Span(0, size, size)]

    def orthotune_weight(self) -> tuple[Tensor, int] | None:
        return _table_rows(self.orthotune_lm_head[0]) if self.orthotune_lm_head else None

    def orthotune_cut_bias(self) -> bool:
        """Whether each rank adds a part of a bias, which is then in logits that are scaled."""
        return self.tp_size > 1 and any(getattr(head, "bias", None) is not None for head in self.orthotune_lm_head)

    def _get_logits(self, hidden_states: Tensor, lm_head: Any, embedding_bias: Tensor | None = None,
                    skip_gather: bool = False) -> Tensor | None:  # fmt: skip
        def product(x: Tensor) -> Any:
            return super(RotatedHead, self)._get_logits(x, lm_head, embedding_bias, skip_gather)

        slots, on_host = self.orthotune_slots, hidden_states.device.type == "cpu"
        step: Step | None = getattr(self.punica_wrapper, "orthotune_sampled", None)
        tokens: Step | None = getattr(self.punica_wrapper, "orthotune_step", None)
        if slots is None or step is None or tokens is None or not step.present | tokens.present:
            return product(hidden_states)
        bias = None if embedding_bias is None else embedding_bias[: self.base_layer.vocab_size]
        start = 0
        if _PROMPTS:
            rows = hidden_states.stride(0) * hidden_states.element_size()
            start = (hidden_states.data_ptr() - _PROMPTS[-1].data_ptr()) // rows
        if on_host:
            if _PROMPTS:
                step = tokens.part(start, start + len(hidden_states))
            if not step.present & slots.held.keys():
                return product(hidden_states)
            if len(step) != len(hidden_states):
                raise RuntimeError(
                    f"{len(hidden_states)} rows of logits were asked of a batch with {len(step)} sampled tokens: which"
                    " adapter each row has is not known"
                )
            return slots.run(hidden_states, bias, step, product)
        index = self.punica_wrapper._token_lora_indices if _PROMPTS else self.punica_wrapper._sampler_indices
        return slots.run_static(hidden_states, bias, index[start : start + len(hidden_states)], [product])


def _same(x: Tensor) -> Tensor:
    return x


def _table_rows(table: Any) -> tuple[Tensor, int] | None:
    weight = getattr(table, "weight", None)
    if weight is None or weight.dim() != 2 or not weight.is_floating_point():
        return None
    held = table.shard_indices
    return weight[: held.num_org_elements], held.org_vocab_start_index


def _rotating(own: type) -> type:
    """A class of the engine with rotations, or the class itself where it has no product that takes them."""
    if own is VocabParallelEmbeddingWithLoRA:
        kind: type = RotatedTable
    elif issubclass(own, BaseLinearLayerWithLoRA) and "Sharded" not in own.__name__:
        kind = RotatedLinear
    else:
        return own
    return type(own.__name__, (kind, own), {"__module__": __name__})


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
        if refusal is None and isinstance(layer, RotatedLayer):
            inputs = layer.orthotune_input_span()
            layer.orthotune_slots = LayerSlots(
                name, manager.lora_slots, (inputs.size, inputs.full), layer.orthotune_sizes(),
                settings if layer.orthotune_outputs_rotate else replace(settings, outputs="scale"),
                manager.lora_config.lora_dtype, manager.device,
            )  # fmt: skip
            layer.orthotune_shared = shared
            shared.served[name] = layer
            layer.orthotune_number = id(layer)
            _LAYERS[id(layer)] = layer
            reserved += layer.orthotune_slots.nbytes
            if isinstance(layer, RotatedHead):
                layer.orthotune_lm_head = [manager.model.get_submodule(name)]  # a list, so that it is no submodule
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
        if len(parts) == len(layer.orthotune_sizes()):
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
        complete = [full for _, full in layer.orthotune_sizes()]
        sizes[name] = (layer.orthotune_input_span().full, sum(complete) if index is None else complete[index])
    found: dict[str, list[LayerMap | None]] = {}
    tables = {name for name, (module, _) in names.items() if isinstance(shared.served[module], RotatedTable)}

    def is_base(name: str, weight: Tensor) -> bool:
        held = shared.served[names[name][0]].orthotune_weight()
        return held is not None and _equal_rows(held[0], weight, held[1])

    for name, complete_map in maps_of(state, sizes, partial(_renamed, manager.model), tables, is_base).items():
        module, index = names[name]
        layer = shared.served[module]
        own = found.setdefault(module, [None] * len(layer.orthotune_sizes()))
        for slice_index, part in enumerate(_parts(layer, complete_map, index, name)):
            if part is not None:
                own[slice_index] = as_dtype(part, manager.lora_config.lora_dtype)
    for module, maps in found.items():
        layer = shared.served[module]
        if manager.device.type != "cpu" and any(own is not None and own.operator is not None for own in maps):
            raise UnsupportedLayerError(
                f"serving layer '{module}' unmerged on {manager.device.type}", got="a map that is not made of blocks",
                needed="block rotations", do="Merge the adapter and serve the merged model: orthotune merge",
            )  # fmt: skip
        assert layer.orthotune_slots is not None
        layer.orthotune_slots.check(maps, layer.orthotune_bias() is not None)
    return found


def _equal_rows(held: Tensor, weight: Tensor, start: int) -> bool:
    """Whether a saved table has the rows that a rank holds, to the rounding of the coarser of the two dtypes."""
    if weight.dim() != 2 or weight.shape[1] != held.shape[1] or len(weight) < start + len(held):
        return False
    own = weight[start : start + len(held)].to(held.device)
    return torch.equal(own.to(held.dtype), held) or torch.equal(held.to(own.dtype), own)


def _parts(layer: Any, complete: LayerMap, index: int | None, name: str) -> list[LayerMap | None]:
    """The map of each slice of a layer for its rank; None for slices that it is not for."""
    inputs, own = layer.orthotune_input_span(), layer.orthotune_spans()
    if not layer.orthotune_outputs_rotate and (complete.outputs is not None or complete.bias is not None):
        raise UnsupportedLayerError(
            f"serving layer '{name}' unmerged", got="a rotation or a bias of the outputs of a head",
            needed="a rotation of its inputs or a magnitude",
            do="Merge the adapter and serve the merged model: orthotune merge",
        )  # fmt: skip
    if isinstance(layer, RotatedHead) and complete.scale is not None and layer.orthotune_cut_bias():
        raise UnsupportedLayerError(
            f"layer '{name}' cut by tensor-parallel rank", got="a magnitude of a head with a bias",
            needed="a rotation of its inputs", do="Use one rank, or serve the merged model",
        )  # fmt: skip
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
            later = layer.orthotune_input_span().start > 0
            layer.orthotune_slots.put(slot, maps, None if later else layer.orthotune_bias())
    (shared.rotated.add if rotated else shared.rotated.discard)(slot)


def _manager_made(original: Any, manager: Any, *args: Any, **kwargs: Any) -> None:
    original(manager, *args, **kwargs)
    config = kwargs["vllm_config"] if "vllm_config" in kwargs else args[-1]
    _reserve(manager, config)
    if len(_REGISTERED) == 1:  # in a worker; other processes need not import what runs models
        from vllm.v1.worker.gpu.sample.prompt_logprob import PromptLogprobsWorker
        from vllm.v1.worker.gpu_model_runner import GPUModelRunner

        _REGISTERED.append(True)
        _wrap(GPUModelRunner, "_get_prompt_logprobs_dict", partial(_prompts_scored, 0))
        _wrap(PromptLogprobsWorker, "compute_prompt_logprobs", partial(_prompts_scored, 1))
        _wrap(PromptLogprobsWorker, "compute_prompt_token_id_logprobs", partial(_prompts_scored, 1))


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
    tokens, sampled = (
        [slots[number] if number > 0 else -1 for number in own]
        for own in (mapping.index_mapping, mapping.prompt_mapping)
    )
    wrapper.orthotune_step = Step(tokens, torch.device(wrapper.device))
    wrapper.orthotune_sampled = Step(sampled, torch.device(wrapper.device))


def _prompts_scored(place: int, original: Any, runner: Any, *args: Any, **kwargs: Any) -> Any:
    """While parts of prompts are scored, the head finds by the place of its states which tokens they are."""
    _PROMPTS.append(kwargs["hidden_states"] if "hidden_states" in kwargs else args[place])
    try:
        return original(runner, *args, **kwargs)
    finally:
        _PROMPTS.pop()


def _wrap(owner: type, name: str, around: Callable[..., Any]) -> None:
    original = getattr(owner, name)

    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        return around(original, self, *args, **kwargs)

    setattr(owner, name, wrapped)


def _served_linear(x: Tensor, bias: Tensor | None, layer: int, outputs: int, forward: bool) -> Tensor:
    return _LAYERS[layer].orthotune_run(x, bias, forward)


def _served_table(y: Tensor, layer: int) -> Tensor:
    rotated: Tensor = _LAYERS[layer].orthotune_run(y)
    return y.clone() if rotated is y else rotated  # what comes out of an operation may not be what went in


def _served_linear_shape(x: Tensor, bias: Tensor | None, layer: int, outputs: int, forward: bool) -> Tensor:
    return x.new_empty(*x.shape[:-1], outputs)


def register() -> None:
    """Make the classes of vLLM 0.32 in this process serve rotations; once, however often it is called."""
    if _REGISTERED:
        return
    _REGISTERED.append(True)
    signature = "(Tensor x, Tensor? bias, int layer, int outputs, bool forward) -> Tensor"
    torch.library.define("orthotune::served_linear", signature)
    torch.library.impl("orthotune::served_linear", "CompositeExplicitAutograd", _served_linear)
    torch.library.register_fake("orthotune::served_linear", _served_linear_shape)
    torch.library.define("orthotune::served_table", "(Tensor y, int layer) -> Tensor")
    torch.library.impl("orthotune::served_table", "CompositeExplicitAutograd", _served_table)
    torch.library.register_fake("orthotune::served_table", lambda y, layer: torch.empty_like(y))
    vllm.lora.utils.LogitsProcessorWithLoRA = RotatedHead
    vllm.lora.utils._all_lora_classes = tuple(_rotating(own) for own in vllm.lora.utils._all_lora_classes)
    _wrap(LoRAModelManager, "__init__", _manager_made)
    _wrap(LoRAModelManager, "activate_adapter", _activated)
    _wrap(LoRAModelManager, "_create_merged_loras_inplace", _packed)
    _wrap(WorkerLoRAManager, "_load_adapter", _loaded)
    _wrap(PunicaWrapperBase, "_update_base_metadata", _mapped)
