"""The original OFT program, Zeju1997/oft: ``R``, a dense matrix per block, on the input side."""

from __future__ import annotations

from torch import Tensor

from orthotune.errors import AdapterFileError
from orthotune.formats.adapter_file import AdapterFile, refuse_shape
from orthotune.formats.adapter_state import AdapterState, LayerState
from orthotune.formats.codecs.dense_blocks import floating, scale_of_rows, skew_vector, square_blocks, within_ball
from orthotune.formats.read_options import ReadOptions
from orthotune.rotation.butterfly import Butterfly
from orthotune.rotation.frozen import FrozenMap
from orthotune.rotation.spec import RotationSpec

SUFFIXES = r"R|scaling_factors|OFT\.weight|OFT\.bias"


def read_checkpoint(file: AdapterFile, format: str, options: ReadOptions) -> AdapterState:
    """Read the adapter in a checkpoint of oft-control, without the weights of the model.

    Args:
        file: opened, its tensors not read yet.
        format: id of the format.
        options: facts that the file does not record.

    Raises:
        AdapterFileError: a tensor has a wrong shape, or the program that wrote a shared block is unknown.
    """
    layers: dict[str, LayerState] = {}
    transforms: dict[str, FrozenMap] = {}
    used, convs = 0, 0
    for stem, names in file.layers(SUFFIXES).items():
        if "R" not in names:
            continue
        used += len(names)
        tensors = file.read(names[key] for key in ("R", "scaling_factors") if key in names)
        weight = file.shapes.get(names.get("OFT.weight", ""))
        shared = len(file.shapes[names["R"]]) == 2
        blocks = stored_blocks(file, names["R"], tensors[names["R"]])
        scale = names.get("scaling_factors")
        magnitude = None if scale is None else scale_of_rows(file, scale, tensors[scale], weight[0] if weight else None)
        if weight is not None and len(weight) == 4:
            convs += 1
            transforms[stem] = _convolution(file, names["R"], blocks, weight, magnitude, options)
            continue
        if weight is None and shared and options.project is None:
            raise AdapterFileError(
                f"{file.path} holds shared blocks without the weights that they rotate",
                needed="the program that wrote it: oft-control rotates shared blocks in the opposite direction to "
                "oft-db and oft-t2i",
                do="Pass project='oft-control' or project='oft-db'",
            )
        if options.coft:
            blocks = projected(file, blocks, shared, options.eps)
        reversed_ = shared and options.project != "oft-db"
        layers[stem] = LayerState(
            {"": skew_vector(blocks, -0.5 if reversed_ else 0.5)}, RotationSpec(shared=shared), magnitude
        )
    return AdapterState(
        layers, {}, {}, file.path, format, transforms, {stem: stem for stem in [*layers, *transforms]},
        file.metadata, _warnings(len(file.shapes) - used, convs, options),
    )  # fmt: skip


def stored_blocks(file: AdapterFile, name: str, tensor: Tensor) -> Tensor:
    """``R`` as a stack of matrices; a shared block is stored without the first dimension.

    Args:
        file: of the tensor, for messages.
        name: of the tensor.
        tensor: the stored tensor.

    Raises:
        AdapterFileError: the tensor has another shape.
    """
    return square_blocks(file, name, tensor.unsqueeze(0) if tensor.dim() == 2 else tensor, 3)


def projected(file: AdapterFile, blocks: Tensor, shared: bool, eps: float | None) -> Tensor:
    """The blocks projected to the COFT ball, of radius ``eps b² / sqrt(r)``, or ``eps b²`` for a shared block.

    Args:
        file: for messages.
        blocks: ``(r, b, b)``.
        shared: whether there is one shared block.
        eps: the COFT radius of the run.

    Raises:
        AdapterFileError: ``eps`` is None.
    """
    if eps is None:
        raise AdapterFileError(f"COFT for {file.path}", needed="its eps, which the file does not record", do="Pass eps")
    b = blocks.shape[-1]
    return within_ball(blocks, eps * b**2 / (1 if shared else blocks.shape[0] ** 0.5))


def _convolution(
    file: AdapterFile,
    name: str,
    blocks: Tensor,
    weight: tuple[int, ...],
    magnitude: Tensor | None,
    options: ReadOptions,
) -> Butterfly:
    shared = len(file.shapes[name]) == 2
    if blocks.shape[-1] != weight[2] * weight[3] or (not shared and blocks.shape[0] != weight[1]):
        refuse_shape(file.path, name, blocks.shape, f"[{weight[1]}, {weight[2] * weight[3]}, {weight[2] * weight[3]}]")
    if options.eps is not None:
        blocks = projected(file, blocks, shared, options.eps)
    return Butterfly((blocks - blocks.mT).unsqueeze(0) / 2, "peft", "in", magnitude, legacy_conv=True)


def _warnings(rest: int, convs: int, options: ReadOptions) -> tuple[str, ...]:
    found = []
    if rest:
        found.append(f"{rest} other tensors of the checkpoint are not read: only the rotations belong to the adapter")
    if convs and options.eps is None:
        found.append(
            f"{convs} convolutions are read as stored. They were trained with COFT, and a file that was saved between "
            "an optimizer step and the next forward needs eps"
        )
    return tuple(found)


def flag(file: AdapterFile, name: str, tensor: Tensor) -> float:
    """The value of a scalar that is stored with a rotation, such as ``oft_eps``.

    Args:
        file: of the tensor, for messages.
        name: of the tensor.
        tensor: the stored tensor.

    Raises:
        AdapterFileError: the tensor is not a scalar.
    """
    if tensor.numel() != 1 or tensor.is_complex():
        refuse_shape(file.path, name, tensor.shape, "one number")
    return float(tensor if not tensor.is_floating_point() else floating(file, name, tensor))
