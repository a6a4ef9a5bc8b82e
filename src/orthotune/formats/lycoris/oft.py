"""LyCORIS Diag-OFT since 2.1: ``oft_blocks`` of three dimensions, ``alpha``, ``rescale``."""

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
    """``W' = rescale (C+(clip(K))ᵀ W)`` with ``K = A - Aᵀ``; a written file may hold butterflies, too."""

    name = "lycoris-oft"
    producer = "LyCORIS 2.1 or later, Diag-OFT"
    prefixes = (*LORA, *LYCORIS)
    target = "lycoris"
    tool = "LyCORIS 3.0 and later"
    lossless, approximate = OUT_BLOCKS, SERIES_OUT
    side = "out"
    scale_dims = True
    spellings: ClassVar = {**Format.spellings, "": "lycoris_"}

    def detect(self, file: AdapterFile, options: ReadOptions) -> bool:
        """Whether the file holds such blocks under a prefix that is not sd-scripts'."""
        kohya = KOHYA_OFT[0][0]
        own = [names for stem, names in file.layers("oft_blocks").items() if not stem.startswith(kohya)]
        return bool(own) and not any(len(file.shapes[names["oft_blocks"]]) == 4 for names in own)

    def read(self, file: AdapterFile, options: ReadOptions) -> AdapterState:
        """A rotation for each layer, on the output side."""
        from orthotune.formats.codecs.oft_blocks import read_blocks

        return read_blocks(file, self.name, "lycoris")

    def write(self, state: AdapterState, out: Path, names: Mapping[str, str]) -> Path:
        """Blocks that LyCORIS' loader does not group anew."""
        from orthotune.formats.codecs.oft_blocks import lycoris_header, write_blocks

        return write_blocks(state, out, names, _arranged, lycoris_header)


def _arranged(name: str, blocks: Tensor, scaled: bool) -> Tensor:
    """The loader chooses the block size again, and takes the smaller one of the size and the number of blocks."""
    from orthotune.formats.codecs.oft_blocks import as_butterfly

    count, size = blocks.shape[:2]
    if size <= count:
        return blocks
    if size % 2 or count & (count - 1):
        raise UnsupportedLayerError(
            f"layer '{name}' for LyCORIS", got=f"{count} blocks of {size}",
            needed="no larger blocks than there are of them, or an even size and a count that is a power of two",
        )  # fmt: skip
    return as_butterfly(blocks, count.bit_length())
