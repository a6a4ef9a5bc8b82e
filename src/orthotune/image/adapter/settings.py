"""The settings of an adapter of an image model: method, modules, sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orthotune.errors import RecipeError

ATTENTION, WITH_CONVOLUTIONS = "attention", "attention+convolutions"
METHODS = ("oft", "coft", "lora", "full")


@dataclass(frozen=True)
class AdapterSettings:
    """The settings of an adapter.

    Args:
        method: ``"oft"``, ``"coft"``, ``"lora"`` or ``"full"``, which trains the target weights themselves, without
            biases.
        targets: ``"attention"``, ``"attention+convolutions"`` or names of the denoiser's modules, as in PEFT's
            ``target_modules``.
        block_size: of the rotations; the default of ``OFTConfig`` if neither ``block_size`` nor ``r`` is given.
        r: number of blocks in each layer, instead of ``block_size``.
        eps: COFT radius, only for method ``coft``; its default if None.
        rotation: further fields of ``OFTConfig``, such as ``{"magnitude": True}``.
        lora_rank: None for the rank whose number of parameters is nearest to that of the rotations with these settings.
        lora_alpha: twice the rank if None.
        lora: further fields of ``LoraConfig``, such as ``{"use_rslora": True}``.
        text_encoders: also adapt the attention of the CLIP text encoders. T5 stays frozen.

    Raises:
        RecipeError: the method is unknown.
    """

    method: str = "oft"
    targets: str | Sequence[str] = ATTENTION
    block_size: int | None = None
    r: int | None = None
    eps: float | None = None
    rotation: Mapping[str, Any] = field(default_factory=dict)
    lora_rank: int | None = None
    lora_alpha: float | None = None
    lora: Mapping[str, Any] = field(default_factory=dict)
    text_encoders: bool = False

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise RecipeError(f"method={self.method!r}", needed=f"one of {', '.join(METHODS)}")
