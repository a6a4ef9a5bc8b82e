"""Estimate the device memory of a training run without running it.

Weights, gradients and optimizer states are counted. Activations are the tensors that autograd saves between forward and
backward, counted on a copy of the model with fake tensors (shapes without data), as on a CPU.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.overrides import TorchFunctionMode

from orthotune.image.data.batch import Batch, Sources
from orthotune.image.families.family import LossOptions
from orthotune.image.families.pipeline_family import PipelineFamily
from orthotune.image.loop.block_swap import swapped, swapped_bytes
from orthotune.layers.parametrization.rotation import Rotation
from orthotune.quantized.in_place import quantized_bytes

#: bytes of an optimizer per parameter: two moments, float32 or quantized; a moment and the point that is averaged; two
#: moments, a sum and the start. Adafactor keeps a row and a column of a matrix: less than a moment.
OPTIMIZER_BYTES: dict[str, int] = {"adamw": 8, "adamw-8bit": 2, "adafactor": 4, "prodigy": 16, "schedule-free": 8}
#: usual memory of cards, in GiB
CARDS = (12, 16, 24, 48, 80)
#: share of a card that the driver, the libraries and temporary buffers are taken to need
RESERVED = 0.1
_PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16}
_UNITS = ("B", "KiB", "MiB", "GiB")


class TrainingSettings(Protocol):
    """The settings of a run that its memory depends on."""

    batch_size: int
    resolution: int | None
    optimizer: Any
    ema: float
    mixed_precision: Any
    gradient_checkpointing: bool
    rest_encoders: bool
    swap_blocks: int | None
    quantization: str | None


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on the device during the training of one micro-batch.

    Args:
        frozen: frozen weights of the complete pipeline, or without text encoders and VAE where these rest, and without
            the blocks that are swapped, but for two of them; with quantization as it will be.
        trained: trained parameters, in float32.
        gradients: of the trained parameters.
        optimizer: the states of the optimizer; of Adafactor, an upper bound.
        average: exponential moving average, if there is one.
        activations: tensors saved for the backward; None if the model does not run with fake tensors. With gradient
            checkpointing these are the inputs of the blocks; the recomputation of one block needs additional memory.
        components: the frozen weights by component of the pipeline.

    Example:
        >>> MemoryEstimate(1024, 512, 512, 1024, 0, None).total
        3072
    """

    frozen: int
    trained: int
    gradients: int
    optimizer: int
    average: int
    activations: int | None
    components: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """The sum, without temporary buffers of single operations."""
        return sum(count or 0 for count in self._parts().values())

    def _parts(self) -> dict[str, int | None]:
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name != "components"}

    def lines(self) -> list[str]:
        """The estimate as lines for a terminal."""
        parts = [f"{name} {shown(count)}" for name, count in self._parts().items() if count != 0]
        frozen = ", ".join(f"{name} {shown(count)}" for name, count in self.components.items())
        return [f"memory      {shown(self.total)} (estimate), plus temporary buffers of single operations",
                f"            {', '.join(parts)}",
                *([f"            frozen: {frozen}"] if frozen else []),
                f"cards       {self.cards()}"]  # fmt: skip

    def cards(self) -> str:
        """Which of the usual sizes of cards the estimate fits, as text.

        Example:
            >>> MemoryEstimate(13 * 1024**3, 0, 0, 0, 0, 0).cards()
            '12 GB: no, 16 GB: yes, 24 GB: yes, 48 GB: yes, 80 GB: yes'
        """
        if self.activations is None:
            return "unknown, as the activations are not known"
        room = {card: (1 - RESERVED) * card * 1024**3 for card in CARDS}
        return ", ".join(f"{card} GB: {'yes' if self.total <= space else 'no'}" for card, space in room.items())


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
    model: Any = copy.deepcopy(trainee, _empty([*family.modules().values(), trainee], mode)).train()
    with mode:
        for module in model.modules():
            if isinstance(
                module, Rotation
            ):  # how R is computed depends on its values, which are not there; the saved tensors do not
                size = module.layout.block_size
                vars(module)["known"] = partial(torch.empty, module.weight.shape[0], size, size)
                module.group = None
        if settings.gradient_checkpointing:
            model.checkpoint_gradients()
        owned = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
        saved: dict[int, Any] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in owned:
                saved[storage._cdata] = storage  # kept alive until they are summed, so that no address is reused
            return tensor

        try:
            hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
            with hooks, _precision(family, settings), _Unknown():
                losses = model(_batch(model, settings), torch.Generator().manual_seed(0), LossOptions())
        except (RuntimeError, NotImplementedError, DynamicOutputShapeException, DataDependentOutputException):
            return None  # a model whose control flow depends on tensor values
        del losses
        return sum(storage.nbytes() for storage in saved.values())


class _Unknown(TorchFunctionMode):
    """Answers questions about values that are not there: a mask keeps all rows, its inverse none, a condition holds.

    This is the largest case of models that sort the tokens of captions by a mask.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is Tensor.__bool__ and isinstance(args[0], FakeTensor):
            return True
        if function is Tensor.__getitem__ and isinstance(args[1], FakeTensor) and args[1].dtype == torch.bool:
            return args[0][:0] if getattr(args[1], "keeps_none", False) else args[0]
        found = function(*args, **(kwargs or {}))
        if function in (Tensor.__invert__, torch.bitwise_not, torch.logical_not) and isinstance(found, FakeTensor):
            vars(found)["keeps_none"] = True
        return found


def _empty(parts: list[nn.Module], mode: FakeTensorMode) -> dict[int, Any]:
    """The memo of ``deepcopy`` that replaces each parameter and buffer by a fake tensor."""
    tensors = {id(tensor): tensor for part in parts for tensor in (*part.parameters(), *part.buffers())}
    memo: dict[int, Any] = {}
    with mode:
        for name, tensor in tensors.items():
            empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
            learns = tensor.requires_grad
            memo[name] = nn.Parameter(empty, learns) if isinstance(tensor, nn.Parameter) else empty
    return memo


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
        latents=torch.empty(count, *family.latent_shape(side, side)),
        captions=captions,
        conditions=conditions,
        weight=torch.ones(count),
        hints=torch.empty(count, 3, side, side) if trainee.hint_encoder is not None else None,
    )


def shown(count: int | None) -> str:
    """A number of bytes in readable units.

    Example:
        >>> shown(1536), shown(None)
        ('1.5 KiB', 'unknown')
    """
    if count is None:
        return "unknown"
    power = 0
    while count >= 1024 ** (power + 1) and power < len(_UNITS) - 1:
        power += 1
    return f"{count / 1024**power:.1f} {_UNITS[power]}" if power else f"{count} B"
