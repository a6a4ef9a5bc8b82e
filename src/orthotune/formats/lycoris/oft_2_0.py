"""LyCORIS Diag-OFT 2.0: ``oft_diag``, the orthogonal matrix of each block, multiplied by the scale of its rows."""

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
        """Whether the file holds ``oft_diag``."""
        return file.has("oft_diag")

    def read(self, file: AdapterFile, options: ReadOptions) -> AdapterState:
        """Read a layer as a rotation if its matrices have skew-symmetric parameters, otherwise as dense blocks."""
        from orthotune.formats.codecs.orthogonal_blocks import read_orthogonal

        return read_orthogonal(file, self.name)
