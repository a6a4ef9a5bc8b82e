"""The dense tensors ``oft_r`` and ``oft_s`` of PEFT before 0.16, as each version uses them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from orthotune.errors import AdapterFileError
from orthotune.files.names import escaped
from orthotune.formats.adapter_file import AdapterFile
from orthotune.formats.adapter_state import AdapterState, LayerState
from orthotune.formats.codecs.dense_blocks import (
    is_shared,
    refuse_foreign,
    scale_of_rows,
    skew_vector,
    square_blocks,
    within_ball,
)
from orthotune.formats.peft.config_field import integer, number
from orthotune.formats.peft.names import bare
from orthotune.rotation.spec import RotationSpec


def read_08(file: AdapterFile, format: str) -> AdapterState:
    """Read an adapter of 0.8 to 0.13: ``W' = (C-((A - Aᵀ) / 2)[:out, :out])ᵀ W``; the last block may be truncated.

    Args:
        file: opened, its tensors not read yet.
        format: id of the format.

    Raises:
        AdapterFileError: a tensor has a wrong shape.
    """
    found, config = file.layers("oft_r"), dict(file.config or {})
    layers, prefixes = {}, {}
    for stem, names in found.items():
        key = names["oft_r"]
        blocks = square_blocks(file, key, file.read([key])[key], 3)
        rows, b = blocks.shape[:2]
        if config.get("coft"):
            blocks = within_ball(blocks, number(config, "eps", 6e-5) * b**2 / rows**0.5)
        name = bare(stem)
        spec = RotationSpec(side="out", shared=is_shared(file, key, blocks))
        layers[name] = LayerState({"": skew_vector(blocks, -0.5)}, spec, truncated=True)
        prefixes[name] = stem
    rest = refuse_foreign(file, file.layers("oft_r"))
    other = {bare(name): tensor for name, tensor in file.read(rest).items()}
    return AdapterState(layers, config, other, file.path, format, prefixes=prefixes, metadata=file.metadata)


def read_14(file: AdapterFile, format: str) -> AdapterState:
    """Read an adapter of 0.14 or 0.15: ``W' = oft_s (W C-((A - Aᵀ) / 2)ᵀ)``.

    Args:
        file: opened, its tensors not read yet.
        format: id of the format.

    Raises:
        AdapterFileError: a tensor is missing or has a wrong shape.
    """
    config = dict(file.config or {})
    layers, prefixes, warnings = {}, {}, []
    for stem, names in file.layers("oft_r|oft_s").items():
        if len(names) < 2:
            given = f"Layer '{escaped([stem])}' of {file.path}"
            raise AdapterFileError(given, got=escaped(names), needed="oft_r and oft_s")
        tensors = file.read(names.values())
        blocks = square_blocks(file, names["oft_r"], tensors[names["oft_r"]], 3)
        scale = scale_of_rows(file, names["oft_s"], tensors[names["oft_s"]], None)
        if config.get("coft"):
            radius = _radius(config, blocks, scale.numel())
            if radius is None:
                warnings.append(
                    f"'{bare(stem)}' is read as stored: the COFT radius of a shared block depends on the base"
                )
            else:
                blocks = within_ball(blocks, radius)
        name = bare(stem)
        prefixes[name] = stem
        layers[name] = LayerState(
            {"": skew_vector(blocks, 0.5)}, RotationSpec(shared=is_shared(file, names["oft_r"], blocks)), scale
        )
    rest = refuse_foreign(file, file.layers("oft_r|oft_s"))
    other = {bare(name): tensor for name, tensor in file.read(rest).items()}
    return AdapterState(
        layers, config, other, file.path, format, prefixes=prefixes, metadata=file.metadata, warnings=tuple(warnings)
    )


def _radius(config: Mapping[str, Any], blocks: Tensor, out: int) -> float | None:
    """The COFT radius. PEFT computes it from the number of outputs, although the blocks rotate the inputs."""
    count = integer(config, "r", 0) if config.get("block_share") else blocks.shape[0]
    if not count:
        return None
    return float(number(config, "eps", 6e-5) * (-(-out // count)) ** 2 / blocks.shape[0] ** 0.5)
