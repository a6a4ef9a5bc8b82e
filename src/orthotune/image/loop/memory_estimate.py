"""Estimate the device memory of a training run without running it.

Weights, gradients and optimizer states are counted. Activations are the tensors that autograd saves between forward and
backward, counted on a copy of the model with fake tensors (shapes without data), as on a CPU.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode

from orthotune.image.data.batch import Batch, Sources
from orthotune.image.families.family import LossOptions
from orthotune.image.families.pipeline_family import PipelineFamily
from orthotune.image.loop.block_swap import swapped, swapped_bytes
from orthotune.quantized.in_place import quantized_bytes
from orthotune.runs.memory_estimate import MemoryEstimate, rotations_of_any_value, saved_bytes, without_data

#: bytes of an optimizer per parameter: two moments, float32 or quantized; a moment and the point that is averaged; two
#: moments, a sum and the start. Adafactor keeps a row and a column of a matrix: less than a moment.
OPTIMIZER_BYTES: dict[str, int] = {"adamw": 8, "adamw-8bit": 2, "adafactor": 4, "prodigy": 16, "schedule-free": 8}
_PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16}


class TrainingSettings(Protocol):
    """The settings of a run that its memory depends on."""

    batch_size: int
    resolution: int | None
    frames: int
    optimizer: Any
    ema: float
    mixed_precision: Any
    gradient_checkpointing: bool
    rest_encoders: bool
    swap_blocks: int | None
    quantization: Any


def estimate_memory(family: PipelineFamily, trainee: nn.Module, settings: TrainingSettings) -> list[str]:
    """:func:`measure_memory` in lines to print.

    Args:
        family: the pipeline, with its adapter.
        trainee: an :class:`~orthotune.image.loop.trainee.Trainee` of the pipeline.
        settings: of the run.
    """
    return measure_memory(family, trainee, settings).lines()


def measure_memory(family: PipelineFamily, trainee: nn.Module, settings: TrainingSettings) -> MemoryEstimate:
    """Estimate the memory of training ``trainee`` with ``settings``.

    Args:
        family: the pipeline, with its adapter, not quantized.
        trainee: an :class:`~orthotune.image.loop.trainee.Trainee` of the pipeline; it is not changed.
        settings: of the run.
    """
    learning = [p for p in trainee.parameters() if p.requires_grad]
    known = {id(p) for p in learning}
    resting = family.resting_parts() if settings.rest_encoders else []
    networks = {name: part for name, part in family.modules().items() if all(part is not one for one in resting)}
    sizes: dict[int, int] = {}
    if settings.quantization:
        for part in (family.denoiser, *family.text_encoders.values()):
            sizes |= quantized_bytes(part, settings.quantization)
    components = {name: _bytes([part], known, sizes) for name, part in networks.items()}
    count = sum(p.numel() for p in learning)
    away = swapped_bytes(swapped(family.denoiser, settings.swap_blocks)) if settings.swap_blocks else 0
    if away:
        components[family.denoiser_name] -= away
    return MemoryEstimate(
        frozen=_bytes([*networks.values(), trainee], known, sizes) - away,
        trained=4 * count,
        gradients=4 * count,
        optimizer=OPTIMIZER_BYTES[settings.optimizer] * count,
        average=4 * count if settings.ema else 0,
        activations=_activations(family, trainee, settings),
        components=components,
    )


def _bytes(parts: Sequence[nn.Module], without: set[int], quantized: Mapping[int, int]) -> int:
    held = {id(t): t for part in parts for t in (*part.parameters(), *part.buffers()) if id(t) not in without}
    return sum(quantized.get(name, t.nbytes) for name, t in held.items())


def _activations(family: PipelineFamily, trainee: nn.Module, settings: TrainingSettings) -> int | None:
    if family.text_reads_references:
        return None  # images for the text encoder are made outside of torch
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    model: Any = copy.deepcopy(trainee, without_data([*family.modules().values(), trainee], mode)).train()
    with mode:
        rotations_of_any_value(model)
        if settings.gradient_checkpointing:
            model.checkpoint_gradients()
        owned = [*model.parameters(), *model.buffers()]
        with _precision(family, settings), _Unknown():
            return saved_bytes(
                owned, lambda: model(_batch(model, settings), torch.Generator().manual_seed(0), LossOptions())
            )


class _Unknown(TorchFunctionMode):
    """Answers questions about values that are not there: a mask keeps all rows, its inverse none, a condition holds.

    The number of rows that a mask keeps is that of all rows. This is the largest case of models that sort or cut the
    tokens of captions by a mask.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if args and (isinstance(args[0], FakeTensor) or function is Tensor.__getitem__):
            if function is Tensor.__bool__:
                return True
            if function is Tensor.__getitem__:
                mask = args[1]
                if isinstance(mask, FakeTensor) and mask.dtype == torch.bool:
                    rows = args[0].flatten(0, mask.dim() - 1)
                    return rows[:0] if getattr(mask, "keeps_none", False) else rows
                args = (args[0], _with_numbers(mask))
            if (number := getattr(args[0], "number", None)) is not None and function in _NUMBERS:
                return [number] * args[0].numel() if function is Tensor.tolist else number
        found = function(*args, **(kwargs or {}))
        if function in (Tensor.__invert__, torch.bitwise_not, torch.logical_not) and isinstance(found, FakeTensor):
            vars(found)["keeps_none"] = True
        if args and isinstance(args[0], FakeTensor):
            _pass_number_on(function, args, kwargs or {}, found)
        return found


#: what reads a number out of a tensor
_NUMBERS = (Tensor.tolist, Tensor.item, Tensor.__int__, Tensor.__index__)
#: what counts the rows of a mask, and what passes such counts on
_COUNTS = (Tensor.sum, torch.sum)
_PASSING = (Tensor.long, Tensor.int, Tensor.to, Tensor.cpu, Tensor.unbind, Tensor.max, Tensor.__getitem__)


def _with_numbers(index: Any) -> Any:
    """An index whose limits may be counts of rows."""
    if isinstance(index, tuple):
        return tuple(_with_numbers(one) for one in index)
    if not isinstance(index, slice):
        return index
    return slice(*(getattr(limit, "number", limit) for limit in (index.start, index.stop, index.step)))


def _pass_number_on(function: Any, args: Any, kwargs: Any, found: Any) -> None:
    number = getattr(args[0], "number", None)
    if function in _COUNTS and not args[0].is_floating_point():
        dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
        number = args[0].shape[dim] if isinstance(dim, int) else None
    elif function not in _PASSING:
        return
    if number is not None:
        for one in found if isinstance(found, tuple) else (found,):
            one.number = number


def _precision(family: PipelineFamily, settings: TrainingSettings) -> AbstractContextManager[Any]:
    dtype = _PRECISIONS.get(settings.mixed_precision)
    return torch.autocast("cpu", dtype=dtype) if dtype and family.dtype == torch.float32 else nullcontext()


def _batch(trainee: Any, settings: TrainingSettings) -> Batch:
    family: PipelineFamily = trainee.family
    divisor, count = family.divisor, settings.batch_size
    side = max(divisor, (settings.resolution or family.native_size) // divisor * divisor)
    captions = ["a"] * count
    conditions = None
    if family.reads:
        mask = torch.zeros(count, side, side, dtype=torch.bool) if family.reads == "mask" else None
        sources = Sources(torch.zeros(count, 1, 3, side, side, dtype=torch.uint8), mask)
        conditions = family.encode_captions(captions) | family.encode_sources(sources)
    return Batch(
        latents=torch.empty(count, *family.latent_shape(side, side, settings.frames)),
        captions=captions,
        conditions=conditions,
        weight=torch.ones(count),
        hints=torch.empty(count, 3, side, side) if trainee.hint_encoder is not None else None,
    )
