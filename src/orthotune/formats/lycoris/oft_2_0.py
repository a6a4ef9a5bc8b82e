"""LyCORIS Diag-OFT 2.0: ``oft_diag``, the finished rotation of each block, with the scale of the rows folded in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orthotune.formats.format import Format
from orthotune.formats.names.prefixes import LORA, LYCORIS

if TYPE_CHECKING:
    from orthotune.formats.adapter_file import AdapterFile
    from orthotune.formats.adapter_state import AdapterState
    from orthotune.formats.read_options import ReadOptions


class LycorisOft20(Format):
    """``M = Rᵀ`` on the output side."""

    name = "lycoris-oft-2.0"
    producer = "LyCORIS 2.0, Diag-OFT"
    prefixes = (*LORA, *LYCORIS)

    def detect(self, file: AdapterFile, options: ReadOptions) -> bool:
        """Whether the file holds finished rotations."""
        return file.has("oft_diag")

    def read(self, file: AdapterFile, options: ReadOptions) -> AdapterState:
        """A rotation where a skew matrix stands for the stored one, otherwise the finished matrices."""
        from orthotune.formats.codecs.finished_blocks import read_finished

        return read_finished(file, self.name)
