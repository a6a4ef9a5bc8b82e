"""The original OFT program, Zeju1997/oft: a checkpoint of oft-control with ``R``, a dense matrix per block."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orthotune.formats.format import Format
from orthotune.formats.names.prefixes import CHECKPOINT

if TYPE_CHECKING:
    from orthotune.formats.adapter_file import AdapterFile
    from orthotune.formats.adapter_state import AdapterState
    from orthotune.formats.read_options import ReadOptions


class OftControl(Format):
    """A rotation of the inputs; a shared block rotates in the opposite direction."""

    name = "oft-control"
    producer = "the original program, oft-control"
    prefixes = CHECKPOINT

    def detect(self, file: AdapterFile, options: ReadOptions) -> bool:
        """Whether the file holds matrices ``R`` outside of the attention processors of diffusers."""
        return any("R" in names and not stem.endswith("_oft") for stem, names in file.layers("R").items())

    def read(self, file: AdapterFile, options: ReadOptions) -> AdapterState:
        """Read the rotations only, not the weights in the checkpoint."""
        from orthotune.formats.original.dense_r import read_checkpoint

        return read_checkpoint(file, self.name, options)
