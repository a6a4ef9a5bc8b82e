"""sd-scripts ``networks.oft_flux``: ``oft_blocks.0``, ``.1``, ..., one per row range of a fused projection."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orthotune.formats.format import Format
from orthotune.formats.names.prefixes import LORA

if TYPE_CHECKING:
    from orthotune.formats.adapter_file import AdapterFile
    from orthotune.formats.adapter_state import AdapterState
    from orthotune.formats.read_options import ReadOptions


class KohyaOftFlux(Format):
    """``W' = C+(clip(K))ᵀ W`` with ``K = A - Aᵀ``, for each row range."""

    name = "kohya-oft-flux"
    producer = "sd-scripts, networks.oft_flux"
    prefixes = LORA

    def detect(self, file: AdapterFile, options: ReadOptions) -> bool:
        """Whether a layer has numbered blocks."""
        return file.has(r"oft_blocks\.\d+")

    def read(self, file: AdapterFile, options: ReadOptions) -> AdapterState:
        """Read a layer whose parts have equal block sizes as one rotation, all others as weight transforms."""
        from orthotune.formats.codecs.split_blocks import read_split

        return read_split(file, self.name)
