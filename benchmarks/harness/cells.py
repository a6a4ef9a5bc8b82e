"""What is measured: the cells of the table, in named selections."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from orthotune.errors import OrthotuneError, nearest

Mode = Literal["train", "eval", "decode"]
Model = Literal["llama", "unet"]


@dataclass(frozen=True)
class Cell:
    """One model under one kind of step.

    Args:
        hidden: width of the model; the first level's channels of a UNet.
        tokens: rows of the input; pixels of a UNet's latent image.
        layers: Llama blocks; levels of a UNet.
        dtype: of the model, by its name in torch.
        block_size: of the rotations.
        mode: ``train`` forward and backward, ``eval`` forward of all tokens, ``decode`` forward of one.
        model: which shape.

    Example:
        >>> Cell(512, mode="decode", tokens=1).label
        'llama 512/1 decode, 3 layers, bfloat16, b=32'
    """

    hidden: int = 1024
    tokens: int = 128
    layers: int = 3
    dtype: str = "bfloat16"
    block_size: int = 32
    mode: Mode = "train"
    model: Model = "llama"

    @property
    def label(self) -> str:
        """The cell in one line."""
        shape = f"{self.model} {self.hidden}/{self.tokens} {self.mode}"
        return f"{shape}, {self.layers} layers, {self.dtype}, b={self.block_size}"


BASE = Cell()
DECODE = Cell(tokens=1, mode="decode")
HIDDEN, TOKENS, LAYERS = (512, 1024, 2048), (64, 128, 512, 2048), (1, 2, 3, 6)
DTYPES, BLOCKS = ("bfloat16", "float32"), (16, 32, 64, 128)

#: the ratio to the frozen floor that exact rotations must not exceed
TARGETS: dict[Cell, float] = {
    BASE: 1.20,
    replace(BASE, tokens=512): 1.08,
    replace(BASE, hidden=2048, tokens=512): 1.05,
    DECODE: 1.10,
}
#: the same for training the widths of ``gpu`` on a GPU
GPU_TARGET = 1.05
#: bytes saved for the backward in ``BASE``, against LoRA's
SAVED_TARGET = 0.85


def _each(base: Cell, field: str, values: Iterable[object]) -> list[Cell]:
    return [replace(base, **{field: value}) for value in values]  # type: ignore[arg-type]


def _growth() -> list[Cell]:
    wide = replace(BASE, dtype="float32")
    lines = [_each(start, "tokens", TOKENS) + _each(start, "hidden", HIDDEN) for start in (BASE, wide)]
    return [*lines[0], *_each(BASE, "layers", LAYERS), *_each(BASE, "block_size", BLOCKS), *lines[1]]


def _grid() -> list[Cell]:
    """Every width, length and dtype; one layer, since the ratio hardly depends on how many there are."""
    starts = [Cell(hidden=hidden, layers=1, dtype=dtype) for dtype in DTYPES for hidden in HIDDEN]
    steps = [cell for start in starts for cell in _each(start, "tokens", TOKENS)]
    evals = [replace(start, mode="eval") for start in starts]
    return [*steps, *evals, *(replace(start, tokens=1, mode="decode") for start in starts)]


def _blocks() -> list[Cell]:
    return [cell for start in (BASE, replace(BASE, tokens=512), DECODE) for cell in _each(start, "block_size", BLOCKS)]


def _gpu() -> list[Cell]:
    """Widths of language models of 3 and 7 to 8 billion parameters; a CPU has no time for them."""
    wide = [Cell(hidden=hidden, tokens=2048, layers=4) for hidden in (3072, 4096)]
    return [*wide, *(replace(cell, tokens=1, mode="decode") for cell in wide)]


_UNET = Cell(hidden=320, tokens=1024, layers=2, model="unet")
SELECTIONS: dict[str, list[Cell]] = {
    "targets": list(TARGETS),
    "growth": list(dict.fromkeys(_growth())),
    "blocks": _blocks(),
    "grid": _grid(),
    "others": [BASE, DECODE],
    "fused": [BASE, replace(BASE, tokens=512), DECODE],
    "compiled": [DECODE],
    "unet": [_UNET, replace(_UNET, mode="eval")],
    "gpu": _gpu(),
    "smoke": [Cell(128, 8, 1), Cell(128, 1, 1, mode="decode")],
}
MEANING = {
    "targets": "the cells with a target: three training steps, decoding, saved bytes",
    "growth": "growth with tokens, width, layers and block size",
    "blocks": "block sizes 16 to 128 at 128 and 512 tokens and in decoding",
    "grid": "every width, length and dtype; evaluation and decoding",
    "others": "the base cell with PEFT's BOFT and HRA beside",
    "fused": "beside LoRA with hand-written gradients, and models under torch.compile",
    "compiled": "decoding under torch.compile, beside the frozen model under torch.compile",
    "unet": "a UNet of Stable Diffusion's shape, attention and convolutions",
    "gpu": "widths of models of 3 and 7 to 8 billion parameters, for a GPU",
    "smoke": "whether the harness runs; its figures mean nothing",
}


def target_of(cell: Cell, device: str) -> float | None:
    """The ratio to the frozen floor that exact rotations must not exceed in ``cell``; None where nothing was set.

    Example:
        >>> target_of(Cell(), "cpu"), target_of(Cell(), "cuda")
        (1.2, None)
    """
    if device == "cuda":
        return GPU_TARGET if cell in SELECTIONS["gpu"] and cell.mode == "train" else None
    return TARGETS.get(cell)


def selection(name: str) -> list[Cell]:
    """The cells of a named selection.

    Raises:
        OrthotuneError: there is no such selection.

    Example:
        >>> len(selection("targets"))
        4
    """
    if name not in SELECTIONS:
        close = nearest(name, SELECTIONS, 1)
        do = f"Did you mean {close[0]}?" if close else None
        raise OrthotuneError(f"selection '{name}'", needed=f"one of {', '.join(SELECTIONS)}", do=do)
    return SELECTIONS[name]
