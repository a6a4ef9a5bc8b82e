"""How an image model is adapted: method, modules, sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orthotune.errors import RecipeError

ATTENTION, WITH_CONVOLUTIONS = "attention", "attention+convolutions"
METHODS = ("oft", "coft", "lora", "full")


@dataclass(frozen=True)
class AdapterSettings:
    """How a model is adapted.

    Args:
        method: ``"oft"``, ``"coft"``, ``"lora"``, or ``"full"``: the weights that an adapter would turn are trained
            themselves, their biases are not.
        targets: ``"attention"``, ``"attention+convolutions"`` or names of the denoiser's modules, as in PEFT's
            ``target_modules``.
        block_size: of the rotations; ``OFTConfig``'s own where neither it nor ``r`` is given.
        r: blocks in each layer, instead of ``block_size``.
        eps: freedom of COFT, its own default if None; no other method has one.
        rotation: further fields of ``OFTConfig``, such as ``{"magnitude": True}``.
        lora_rank: None for the rank whose parameters come nearest to those of the rotations described here.
        lora_alpha: twice the rank if None.
        lora: further fields of ``LoraConfig``, such as ``{"use_rslora": True}``.
        text_encoders: adapt the attention of the CLIP text encoders, too. T5 stays frozen.

    Raises:
        RecipeError: there is no such method.
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
