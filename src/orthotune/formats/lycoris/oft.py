"""LyCORIS Diag-OFT since 2.1: ``oft_blocks`` with three dimensions, ``alpha``, ``rescale``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from orthotune.errors import UnsupportedLayerError
from orthotune.formats.format import Format
from orthotune.formats.kinds import OUT_BLOCKS, SERIES_OUT
from orthotune.formats.names.prefixes import KOHYA_OFT, LORA, LYCORIS

if TYPE_CHECKING:
    from torch import Tensor

    from orthotune.formats.adapter_file import AdapterFile
    from orthotune.formats.adapter_state import AdapterState
    from orthotune.formats.read_options import ReadOptions


class LycorisOft(Format):
    """``W' = rescale (C+(clip(K))ᵀ W)`` with ``K = A - Aᵀ``; a written file may also hold butterflies."""

    name = "lycoris-oft"
    producer = "LyCORIS 2.1 or later, Diag-OFT"
    prefixes = (*LORA, *LYCORIS)
    target = "lycoris"
    tool = "LyCORIS 3.0 and later"
    lossless, approximate = OUT_BLOCKS, SERIES_OUT
    side = "out"
    scale_dims = True
    spellings: ClassVar = {**Format.spellings, "": "lycoris_"}
    transformers = "lycoris_"

    def detect(self, file: AdapterFile, options: ReadOptions) -> bool:
        """Whether the file holds such blocks under a prefix other than that of sd-scripts."""
        kohya = KOHYA_OFT[0][0]
        layers = [names for stem, names in file.layers("oft_blocks").items() if not stem.startswith(kohya)]
        return bool(layers) and not any(len(file.shapes[names["oft_blocks"]]) == 4 for names in layers)

    def read(self, file: AdapterFile, options: ReadOptions) -> AdapterState:
        """Read each layer as a rotation on the output side."""
        from orthotune.formats.codecs.oft_blocks import read_blocks

        return read_blocks(file, self.name, "lycoris")

    def write(self, state: AdapterState, out: Path, names: Mapping[str, str]) -> Path:
        """Write blocks in a layout that the loader of LyCORIS does not regroup."""
        from orthotune.formats.codecs.oft_blocks import lycoris_header, write_blocks

        return write_blocks(state, out, names, _arranged, lycoris_header)


def _arranged(name: str, blocks: Tensor, scaled: bool) -> Tensor:
    """The loader of LyCORIS takes the smaller of block size and number of blocks as the block size."""
    from orthotune.formats.codecs.oft_blocks import as_butterfly

    count, size = blocks.shape[:2]
    if size <= count:
        return blocks
    if size % 2 or count & (count - 1):
        raise UnsupportedLayerError(
            f"layer '{name}' for LyCORIS", got=f"{count} blocks of {size}",
            needed="a block size of at most the number of blocks, or an even size and a power of two as the number",
        )  # fmt: skip
    return as_butterfly(blocks, count.bit_length())
