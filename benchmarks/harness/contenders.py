"""Who is measured: the frozen model, PEFT's tuners and ours, on the same layers of the same weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import BOFTConfig, HRAConfig, LoraConfig, PeftConfig, get_peft_model
from peft import OFTConfig as PeftOFTConfig
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import PeftType
from torch import nn

from harness import llama, unet
from harness.cells import Cell
from harness.fused_lora import fused_lora
from harness.subject import Subject
from orthotune.tuner.config import OFTConfig
from orthotune.tuner.model import OFTModel
from orthotune.tuner.register import register, unregister

FLOOR = "frozen"
#: standard deviation of what is added to every trained number, so that no rotation is the identity
STIR = 0.01


@dataclass(frozen=True)
class Contender:
    """A way to adapt a model.

    Args:
        name: in the table.
        config: PEFT's configuration class and its settings; None leaves the model frozen.
        settings: beside the targets and the block size.
        targets: names of layers; None for all of the model's.
        build: adapts a model without a configuration of PEFT.
        compiled: by ``torch.compile``.

    Example:
        >>> Contender("lora", LoraConfig, {"r": 4}).config_for(Cell()).r
        4
    """

    name: str
    config: type[PeftConfig] | None = None
    settings: dict[str, Any] | None = None
    targets: list[str] | None = None
    build: Callable[[nn.Module], nn.Module] | None = None
    compiled: bool = False

    def config_for(self, cell: Cell) -> PeftConfig | None:
        """The configuration for one cell; None for the frozen model."""
        if self.config is None:
            return None
        sized = self.config in (PeftOFTConfig, OFTConfig)
        size = {"oft_block_size": cell.block_size} if sized else {}
        targets = self.targets or targets_of(cell)
        config: PeftConfig = self.config(target_modules=targets, **(size | (self.settings or {})))
        return config


def targets_of(cell: Cell) -> list[str]:
    """Names of the layers that a method adapts unless it names others: all that the model has of every kind."""
    return unet.ATTENTION + unet.CONVOLUTIONS if cell.model == "unet" else llama.PROJECTIONS


_LORA: dict[str, Any] = {"r": 16, "lora_alpha": 16}
_EXACT: dict[str, Any] = {"use_cayley_neumann": False}
_NEUMANN: dict[str, Any] = {"use_cayley_neumann": True}
LLAMA = [
    Contender(FLOOR),
    Contender("lora", LoraConfig, _LORA),
    Contender("peft_oft", PeftOFTConfig),
    Contender("peft_oft_exact", PeftOFTConfig, _EXACT),
    Contender("orthotune", OFTConfig, _EXACT),
    Contender("orthotune_neumann", OFTConfig, _NEUMANN),
]
#: for information: other orthogonal tuners of PEFT, in the sizes that their papers use for language models
OTHERS = [
    Contender("peft_boft", BOFTConfig, {"boft_block_size": 8, "boft_n_butterfly_factor": 2}),
    Contender("peft_hra", HRAConfig, {"r": 8}),
]
#: the contenders that count: LoRA with hand-written gradients, and complete models under ``torch.compile``
FUSED = [
    Contender(FLOOR),
    Contender("lora", LoraConfig, _LORA),
    Contender("lora_fused", build=fused_lora),
    Contender("orthotune", OFTConfig, _EXACT),
    Contender("frozen_compiled", compiled=True),
    Contender("lora_compiled", LoraConfig, _LORA, compiled=True),
    Contender("orthotune_compiled", OFTConfig, _EXACT, compiled=True),
]
#: beside a frozen model that is compiled, too: what an adapter costs a compiled step
COMPILED = [
    *(one for one in FUSED if one.compiled),
    *(one for one in FUSED if one.name in (FLOOR, "lora", "orthotune")),
]
#: PEFT's OFT adapts attention only: its convolutions compute something else (a fresh one changes the output)
UNET = [
    Contender(FLOOR),
    Contender("lora", LoraConfig, _LORA),
    Contender("orthotune", OFTConfig, _EXACT),
    Contender("lora_attention", LoraConfig, _LORA, unet.ATTENTION),
    Contender("peft_oft_attention", PeftOFTConfig, None, unet.ATTENTION),
    Contender("orthotune_attention", OFTConfig, _EXACT, unet.ATTENTION),
    Contender("orthotune_channels", OFTConfig, _EXACT | {"conv": "channels"}),
    Contender("orthotune_out", OFTConfig, _EXACT | {"side": "out"}),
]


def contenders(name: str, cell: Cell) -> list[Contender]:
    """Who takes part in a cell of the selection ``name``; the floor is the first, the frozen model or the compiled one.

    Example:
        >>> [contender.name for contender in contenders("targets", Cell())][:2]
        ['frozen', 'lora']
    """
    if cell.model == "unet":
        return UNET
    if name in ("fused", "compiled"):
        return FUSED if name == "fused" else COMPILED
    return LLAMA + OTHERS if name == "others" else LLAMA


def fresh(contender: Contender, subject: Subject, cell: Cell) -> nn.Module:
    """The subject's weights with a new adapter, as ``get_peft_model`` makes it; it changes no output yet."""
    model = subject.twin()
    config = contender.config_for(cell)
    if config is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = model if contender.build is None else contender.build(model)
        return _compiled(model.train(cell.mode == "train"), contender)
    with warnings.catch_warnings(), _stock(type(config) is PeftOFTConfig), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # BOFT says at each layer that its CUDA extension is not there
        torch.manual_seed(0)
        adapted: nn.Module = get_peft_model(model, config)
    return _compiled(adapted.train(cell.mode == "train"), contender)


def _compiled(model: nn.Module, contender: Contender) -> nn.Module:
    if contender.compiled:
        model.compile()
    return model


def stirred(contender: Contender, subject: Subject, cell: Cell) -> nn.Module:
    """:func:`fresh`, moved a little away from the identity, as after some steps of training."""
    return stir(fresh(contender, subject, cell))


def stir(model: nn.Module) -> nn.Module:
    """Add the same small noise to every trained number of a model, in place."""
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=noise).to(parameter), alpha=STIR)
    return model


@contextmanager
def _stock(wanted: bool) -> Iterator[None]:
    """PEFT's own OFT serves its configs inside the block."""
    ours = PEFT_TYPE_TO_TUNER_MAPPING[PeftType.OFT] is OFTModel
    if wanted:
        unregister()
    elif not ours:
        register()
    try:
        yield
    finally:
        (register if ours else unregister)()
