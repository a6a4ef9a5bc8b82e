"""What a training step, and a decoded token, should cost on a GPU that is not here: a roofline from shapes alone.

Every kernel of a step is written down with its bytes and its products. It takes as long as the slowest of three: its
bytes at the card's bandwidth, its products at the card's rate, and :data:`LAUNCH`. Nothing is fitted, no card reaches
its published numbers, and the result is a prediction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch

from harness.cells import Cell, Mode
from harness.llama import intermediate
from orthotune.errors import OrthotuneError
from orthotune.kernels.tiles import CHUNK, LARGEST_CAYLEY, fused

#: seconds that a kernel takes at least, between its neighbours in a stream: an assumption, not a published number
LAUNCH = 3e-6
#: bytes of an activation and of a weight in bfloat16, and of a number of a rotation
ITEM, WIDE = 2, 4
#: numbers of R that one batch of Cayley maps makes (``layers/parametrization/group.py``)
BATCH = 1 << 22
RANK = 16
BLOCKS = (32, 64, 128)
#: columns of a product that one program makes: a kernel that rotates its operand does so once for each of them
COLUMNS = 256


class Gpu(NamedTuple):
    """Published numbers of a card.

    Args:
        name: of the card.
        bandwidth: bytes per second of its memory.
        products: bfloat16 operations per second, float32 sums, without sparsity.
        float32: operations per second without tensor cores.
        source: where the maker states them.
        launch: seconds that a kernel takes at least.
        dtype: of the model whose products ``products`` is the rate of.
    """

    name: str
    bandwidth: float
    products: float
    float32: float
    source: str
    launch: float = LAUNCH
    dtype: str = "bfloat16"


GPUS = {
    "h100": Gpu("H100 SXM", 3.35e12, 989e12, 67e12, "NVIDIA H100 Tensor Core GPU data sheet"),
    "h200": Gpu("H200 SXM", 4.8e12, 989e12, 67e12, "NVIDIA H200 Tensor Core GPU data sheet"),
    "a100": Gpu("A100 SXM 80 GB", 2.039e12, 312e12, 19.5e12, "NVIDIA A100 Tensor Core GPU data sheet"),
    "l40s": Gpu("L40S", 0.864e12, 362e12, 91.6e12, "NVIDIA L40S GPU data sheet"),
    "4090": Gpu("RTX 4090", 1.008e12, 165.2e12, 82.6e12, "NVIDIA Ada GPU architecture white paper, appendix A"),
    "3090": Gpu("RTX 3090", 0.936e12, 71e12, 35.6e12, "NVIDIA Ampere GA102 GPU architecture white paper, table 2"),
    "mi300x": Gpu("MI300X", 5.3e12, 1307e12, 163.4e12, "AMD Instinct MI300X data sheet"),
}


class Input(NamedTuple):
    """One input of a block and the adapted layers that take it: ``features`` numbers wide, ``outputs`` one for each."""

    features: int
    outputs: tuple[int, ...]
    tokens: int


class Part(NamedTuple):
    """Blocks of a model that are alike.

    Args:
        repeats: how many.
        inputs: of the adapted layers.
        tokens: of the block.
        width: of the residual stream.
        heads: product of heads and their size: what attention reads of one of query, key and value.
        hidden: of the gated MLP; 0 where it is not part of the block's adapted layers.
        causal: whether attention looks back only.
    """

    repeats: int
    inputs: tuple[Input, ...]
    tokens: int
    width: int
    heads: int
    hidden: int
    causal: bool


def _llama(layers: int, width: int, hidden: int, heads: int, keys: int, tokens: int) -> tuple[Part, ...]:
    inputs = (
        Input(width, (heads, keys, keys), tokens), Input(heads, (width,), tokens),
        Input(width, (hidden, hidden), tokens), Input(hidden, (width,), tokens),
    )  # fmt: skip
    return (Part(layers, inputs, tokens, width, heads, hidden, True),)


def _klein(tokens: int, texts: int) -> tuple[Part, ...]:
    w, h = 3072, 9216
    double = tuple(
        Input(features, outputs, count)
        for count in (tokens, texts)
        for features, outputs in ((w, (w, w, w)), (w, (w,)), (w, (2 * h,)), (h, (w,)))
    )
    every = tokens + texts
    single = (Input(w, (3 * w + 2 * h,), every), Input(w + h, (w,), every))
    return Part(5, double, every, w, w, h, False), Part(20, single, every, w, w, h, False)


def _sdxl() -> tuple[Part, ...]:
    def part(count: int, w: int, tokens: int) -> Part:
        inputs = (Input(w, (w, w, w), tokens), Input(w, (w,), tokens), Input(w, (w,), tokens), Input(w, (w,), tokens),
                  Input(2048, (w, w), 77))  # fmt: skip
        return Part(count, inputs, tokens, w, w, 4 * w, False)

    return part(10, 640, 4096), part(60, 1280, 1024)


#: Shapes of the published configurations; language models at 2,048 tokens, image models at one image (FLUX.2-klein
#: 512 x 512 with 512 tokens of text, SDXL 1024 x 1024: its transformer blocks, adapted in attention)
MODELS: dict[str, tuple[Part, ...]] = {
    "Llama-3.2-1B": _llama(16, 2048, 8192, 2048, 512, 2048),
    "Llama-3.2-3B": _llama(28, 3072, 8192, 3072, 1024, 2048),
    "Llama-3.1-8B": _llama(32, 4096, 14336, 4096, 1024, 2048),
    "FLUX.2-klein-4B": _klein(1024, 512),
    "SDXL": _sdxl(),
}


class Kernel(NamedTuple):
    """Kernels that are alike: bytes and operations of one, and how many run."""

    bytes: float
    operations: float = 0.0
    runs: float = 1.0
    tensor: bool = True


@dataclass(frozen=True)
class Cost:
    """Of one step.

    Args:
        seconds: predicted.
        bytes: read and written.
        operations: multiplications and additions.
        launches: kernels.
    """

    seconds: float
    bytes: float
    operations: float
    launches: float


def product(rows: float, inner: float, columns: float, extra: float = 0.0, item: int = ITEM) -> Kernel:
    """``(rows, inner) @ (inner, columns)`` of numbers of ``item`` bytes that moves ``extra`` numbers more."""
    return Kernel(item * (rows * inner + inner * columns + rows * columns + extra), 2.0 * rows * inner * columns)


def passes(numbers: float, count: float = 1.0, item: int = ITEM) -> Kernel:
    """A kernel that reads and writes ``numbers`` activations and computes next to nothing."""
    return Kernel(item * numbers, 0.0, count)


def _of(item: int) -> tuple[Callable[..., Kernel], Callable[..., Kernel]]:
    """:func:`product` and :func:`passes` of numbers of ``item`` bytes."""
    return partial(product, item=item), partial(passes, item=item)


def frozen(
    parts: tuple[Part, ...], train: bool, summed: bool = True, item: int = ITEM, block: int = 0
) -> Iterator[Kernel]:
    """The base: forward, and in training the backward to its input.

    Args:
        parts: of the model.
        train: with the backward.
        summed: layers of one input add their gradients up in kernels of their own; the rotations and the fused LoRA
            do it inside theirs.
        item: bytes of an activation and of a weight.
        block: size of the blocks that each forward product rotates its own operand by; 0: none.
    """
    product, passes = _of(item)
    for part in parts:
        one: list[Kernel] = []
        for features, outputs, tokens in part.inputs:
            one += [_turning(product(tokens, features, out), tokens, features, out, block) for out in outputs]
            if train:
                one += [product(tokens, out, features) for out in outputs]
                one += [passes(3.0 * tokens * features, len(outputs) - 1.0)] * (summed and len(outputs) > 1)
        t, w, half = part.tokens, part.width, 0.5 if part.causal else 1.0
        attention = 4.0 * t * t * part.heads * half
        one += [passes(2.0 * t * w, 2), passes(3.0 * t * w, 2), passes(2.0 * t * part.heads, 2)]
        one += [Kernel(item * 4.0 * t * part.heads, attention), passes(3.0 * t * part.hidden)]
        if train:
            one += [passes(3.0 * t * w, 4), passes(2.0 * t * part.heads, 2), passes(5.0 * t * part.hidden)]
            one += [Kernel(item * 8.0 * t * part.heads, 2.5 * attention)]
        yield from (kernel._replace(runs=kernel.runs * part.repeats) for kernel in one)


def _turning(kernel: Kernel, rows: int, inner: int, columns: int, block: int) -> Kernel:
    """A product ``(rows, inner) @ (inner, columns)`` that rotates the first operand tile by tile."""
    work = 2.0 * rows * inner * block * -(-columns // COLUMNS)
    return kernel._replace(bytes=kernel.bytes + WIDE * inner * block, operations=kernel.operations + work)


def rotations(
    parts: tuple[Part, ...], train: bool, block: int, item: int = ITEM, forward: bool = True
) -> Iterator[Kernel]:
    """What exact rotations with blocks of ``block`` add; without gradients R is there, once for a generation.

    ``forward=False`` leaves out the kernels that rotate inputs, which the products do (:func:`frozen`).
    """
    numbers = 0.0
    for part in parts:
        for features, outputs, tokens in part.inputs:
            turns, x = len(outputs), float(tokens) * features
            R, work = float(features) * block, 2.0 * x * block
            numbers += part.repeats * R * turns
            if forward:
                yield Kernel(item * x * (1 + turns) + WIDE * R * turns, work * turns, part.repeats)
            if train:
                yield from _rotated_back(part.repeats, turns, x, R, work, tokens, block, item)
    if train:
        yield from _cayley(numbers, block)


def _rotated_back(
    count: int, turns: int, x: float, R: float, work: float, tokens: int, block: int, item: int
) -> Iterator[Kernel]:  # fmt: skip
    if fused(item, block, turns):
        parts = WIDE * R * -(-tokens // CHUNK)
        yield Kernel(item * x * (2 + turns) + (WIDE * R + parts) * turns, 2 * work * turns, count)
        yield Kernel((parts + WIDE * R) * turns, 0.0, count)  # the chunks' sum
        return
    yield Kernel(item * x * (1 + turns) + WIDE * R * turns, work * turns, count)
    yield Kernel(item * x * (1 + turns) + WIDE * R * turns, work * turns, count)


def _cayley(numbers: float, block: int) -> Iterator[Kernel]:
    """Rotations of the entire model from their parameters, and the parameters' gradients, float32 without tensor cores.

    Of small angles: nine products a block in one program, or by halves two products and the Newton step's two.
    """
    batches = -(-numbers // BATCH)
    each = numbers / batches
    yield Kernel(WIDE * each, 0.0, batches)  # the parameters of a batch, side by side
    if block <= LARGEST_CAYLEY:
        yield Kernel(WIDE * 1.5 * each, 18.0 * each * block, batches, tensor=False)
        yield Kernel(WIDE * 2.5 * each, 4.0 * each * block, batches, tensor=False)
        return
    launches, size = 1.0, LARGEST_CAYLEY
    while size < block:
        launches, size = 2 * launches + 12, 2 * size
    yield Kernel(WIDE * 3 * each / 4, 2.0 * each * block / launches, batches * launches, tensor=False)
    yield Kernel(WIDE * 3 * each, 2.0 * each * block, batches * 2, tensor=False)  # the Newton step
    yield Kernel(WIDE * 2 * each, 0.0, batches * 5)  # unpacking, I + Q, 2 A - I
    yield Kernel(WIDE * 3 * each, 2.0 * each * block, batches * 2, tensor=False)  # the backward's products
    yield Kernel(WIDE * 1.5 * each, 0.0, batches * 3)  # packing


def lora(parts: tuple[Part, ...], train: bool, by_hand: bool, item: int = ITEM) -> Iterator[Kernel]:
    """What LoRA adds, adapters in bfloat16: layer by layer as PEFT calls it, or ``fused_lora.py``'s way.

    PEFT keeps adapters in float32 by default, and copies every input to it: that is not counted.
    """
    r = RANK
    product, passes = _of(item)
    for part in parts:
        one: list[Kernel] = []
        for n, outputs, tokens in part.inputs:
            t, k = float(tokens), len(outputs)
            if by_hand:
                one.append(product(t, n, r * k))
                one += [product(t, r, m, t * m) for m in outputs]
                if train:
                    one += [kernel for m in outputs for kernel in (product(t, m, r), product(m, t, r))]
                    # x A^T again, the gradients of every A, and of the input; the base's products add to that one
                    one += [product(t, n, r * k), product(r * k, t, n), product(t, r * k, n), passes(t * n, k)]
                continue
            for m in outputs:
                one += [product(t, n, r), product(t, r, m), passes(2 * t * m), passes(3 * t * m)]
                if train:
                    one += [passes(2 * t * m), product(t, m, r), product(m, t, r), product(r, t, n), product(t, r, n)]
                    one.append(passes(3 * t * n))
        if by_hand and part.hidden and train:
            one.append(passes(3.0 * part.tokens * part.hidden))  # the activation once more
        yield from (kernel._replace(runs=kernel.runs * part.repeats) for kernel in one)


def cost(kernels: Iterator[Kernel], gpu: Gpu) -> Cost:
    """The sum of what each kernel takes at best.

    Example:
        >>> cost(iter([passes(1e9)]), GPUS["h100"]).seconds  # 2 GB at 3.35 TB/s
        0.0005970149253731343
    """
    seconds = moved = work = launches = 0.0
    for kernel in kernels:
        rate = gpu.products if kernel.tensor else gpu.float32
        seconds += kernel.runs * max(kernel.bytes / gpu.bandwidth, kernel.operations / rate, gpu.launch)
        moved += kernel.runs * kernel.bytes
        work += kernel.runs * kernel.operations
        launches += kernel.runs
    return Cost(seconds, moved, work, launches)


@dataclass(frozen=True)
class Predicted:
    """One row: a contender on a model and a card.

    Args:
        gpu: of :data:`GPUS`.
        model: of :data:`MODELS`, or a cell of the benchmark.
        mode: a training step, an evaluation, or one decoded token.
        contender: ``frozen``, ``lora``, ``lora_fused``, ``orthotune b=32``, or ``rotating products b=32``, which stands
            for a kernel that is not built: a product that rotates its operand.
        ratio: predicted time, divided by the frozen model's.
        milliseconds: predicted, of the blocks alone: no embedding, no head, no optimizer.
        gigabytes: read and written.
        teraflops: operations, in units of 1e12.
        launches: kernels of the step.
    """

    gpu: str
    model: str
    mode: Mode
    contender: str
    ratio: float
    milliseconds: float
    gigabytes: float
    teraflops: float
    launches: int


def _decoding(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    return tuple(part._replace(tokens=1, inputs=tuple(i._replace(tokens=1) for i in part.inputs)) for part in parts)


def _contenders(
    parts: tuple[Part, ...], train: bool, blocks: tuple[int, ...] = BLOCKS, item: int = ITEM
) -> dict[str, Iterator[Kernel]]:
    def both(base: Iterator[Kernel], added: Iterator[Kernel]) -> Iterator[Kernel]:
        yield from base
        yield from added

    alone = partial(frozen, parts, train, item=item)
    found = {"frozen": alone(), "lora": both(alone(), lora(parts, train, False, item)),
             "lora_fused": both(alone(summed=False), lora(parts, train, True, item))}  # fmt: skip
    found |= {f"orthotune b={block}": both(alone(summed=False), rotations(parts, train, block, item))
              for block in blocks}  # fmt: skip
    # No kernel of ours does this: what it would bring.
    return found | {
        f"rotating products b={block}": both(
            alone(summed=False, block=block), rotations(parts, train, block, item, forward=False)
        )
        for block in blocks
    }


def predict(card: str, only: Callable[[str], bool] = lambda model: True) -> list[Predicted]:
    """Training and, for language models, decoding of every model on one card.

    Args:
        card: of :data:`GPUS`.
        only: which models.

    Raises:
        OrthotuneError: the card is not known.

    Example:
        >>> predict("h100", lambda model: model == "SDXL")[0].contender
        'frozen'
    """
    gpu, rows = _known(card), list[Predicted]()
    for name, shapes in MODELS.items():
        if not only(name):
            continue
        modes: tuple[Mode, ...] = ("train", "decode") if shapes[0].causal else ("train",)
        for mode in modes:
            parts = shapes if mode == "train" else _decoding(shapes)
            rows += _rows(card, gpu, name, mode, _contenders(parts, mode == "train"))
    return rows


def predict_cells(card: str, cells: Sequence[Cell]) -> list[Predicted]:
    """The same for cells of the benchmark, those that the model of the cost has.

    Args:
        card: of :data:`GPUS`.
        cells: of a selection; UNets and float32 are left out, because the model does not have them.

    Raises:
        OrthotuneError: the card is not known, or none of the cells has a prediction.

    Example:
        >>> [row.contender for row in predict_cells("h100", [Cell()])]
        ['frozen', 'lora', 'lora_fused', 'orthotune b=32', 'rotating products b=32']
    """
    gpu, known = _known(card), [cell for cell in cells if _in_model(cell)]
    if not known:
        raise OrthotuneError(f"a prediction for {', '.join(sorted({cell.label for cell in cells}))}",
                             got="only UNets, or only models in float32",
                             needed="Llama blocks in bfloat16, which the model of the cost has",
                             do=f"Leave the selection out: orthotune bench --predict {card}")  # fmt: skip
    rows = list[Predicted]()
    for cell in known:
        rows += _rows(card, gpu, cell.label, cell.mode, _of_cell(cell))
    return rows


def _known(card: str) -> Gpu:
    if card not in GPUS:
        raise OrthotuneError(f"--predict {card}", got="a card without published numbers here",
                             needed=f"one of {', '.join(GPUS)}",
                             do="Add its numbers and their source to GPUS in harness/predict.py")  # fmt: skip
    return GPUS[card]


def _rows(
    card: str, gpu: Gpu, name: str, mode: Mode, contenders: Mapping[str, Iterator[Kernel]]
) -> Iterator[Predicted]:  # fmt: skip
    floor = 0.0
    for contender, kernels in contenders.items():
        found = cost(kernels, gpu)
        floor = floor or found.seconds
        yield Predicted(card, name, mode, contender, round(found.seconds / floor, 3), round(found.seconds * 1e3, 3),
                        round(found.bytes / 1e9, 2), round(found.operations / 1e12, 3),
                        round(found.launches))  # fmt: skip


def _in_model(cell: Cell, device: Gpu | None = None) -> bool:
    dtype = "bfloat16" if device is None else device.dtype
    return cell.model == "llama" and cell.dtype == dtype


def _of_cell(cell: Cell) -> dict[str, Iterator[Kernel]]:
    parts = _llama(cell.layers, cell.hidden, intermediate(cell.hidden), cell.hidden, cell.hidden, cell.tokens)
    item = getattr(torch, cell.dtype).itemsize
    return _contenders(parts, cell.mode == "train", (cell.block_size,), item)


def predicted_ratio(cell: Cell, contender: str, gpu: Gpu) -> float | None:
    """Predicted time of a contender in a cell of Llama blocks, divided by the frozen model's.

    Args:
        cell: a step of Llama blocks in the dtype of the card's numbers.
        contender: ``frozen``, ``lora``, ``lora_fused`` or ``orthotune``.
        gpu: the card.

    Returns:
        None for contenders and models that the model of the cost does not have.

    Example:
        >>> predicted_ratio(Cell(4096, 2048, 4), "frozen", GPUS["h100"])
        1.0
    """
    if not _in_model(cell, gpu):
        return None
    kernels = _of_cell(cell)
    name = f"{contender} b={cell.block_size}" if contender == "orthotune" else contender
    if name not in kernels:
        return None
    return (
        round(cost(kernels[name], gpu).seconds / cost(kernels["frozen"], gpu).seconds, 3) if name != "frozen" else 1.0
    )
