"""PEFT's OFT 0.8 to 0.13: dense ``oft_r`` on the output side."""

from __future__ import annotations

from orthotune.formats.adapter_file import AdapterFile
from orthotune.formats.adapter_state import AdapterState, LayerState
from orthotune.formats.codecs.dense_blocks import (
    refuse_foreign,
    skew_vector,
    square_blocks,
    stands_for_all,
    within_ball,
)
from orthotune.formats.peft.config_field import number
from orthotune.formats.peft.names import bare
from orthotune.formats.read_options import ReadOptions
from orthotune.rotation.spec import RotationSpec

ID = "peft-oft-0.8"


def detect(file: AdapterFile) -> bool:
    """Whether there are dense blocks, no scale, and no field of a later version."""
    return file.has("oft_r") and not file.has("oft_s") and "oft_block_size" not in (file.config or {})


def read(file: AdapterFile, options: ReadOptions) -> AdapterState:
    """The adapter: ``W' = (C-((A - Aᵀ) / 2)[:out, :out])ᵀ W``; blocks may reach past the weight.

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
        spec = RotationSpec(side="out", shared=stands_for_all(file, key, blocks))
        layers[name] = LayerState({"": skew_vector(blocks, -0.5)}, spec, ragged=True)
        prefixes[name] = stem
    rest = refuse_foreign(file, file.layers("oft_r"))
    other = {bare(name): tensor for name, tensor in file.read(rest).items()}
    return AdapterState(layers, config, other, file.path, ID, prefixes=prefixes, metadata=file.metadata)
