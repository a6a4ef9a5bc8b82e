"""LyCORIS BOFT since 2.1: ``oft_blocks`` with four dimensions, ``alpha``, ``rescale``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orthotune.formats.format import Format
from orthotune.formats.names.prefixes import LORA, LYCORIS

if TYPE_CHECKING:
    from orthotune.formats.adapter_file import AdapterFile
    from orthotune.formats.adapter_state import AdapterState
    from orthotune.formats.read_options import ReadOptions
    from orthotune.rotation.on_weight import Blend


class LycorisBoft(Format):
    """A butterfly of ``C+(clip(K))`` on the output side, then ``rescale``. Written by the target ``lycoris``."""

    name = "lycoris-boft"
    producer = "LyCORIS 2.1 or later, BOFT"
    prefixes = (*LORA, *LYCORIS)

    def detect(self, file: AdapterFile, options: ReadOptions) -> bool:
        """Whether the file holds such blocks, possibly together with layers of three dimensions."""
        return file.has("oft_blocks", dims=4)

    def read(self, file: AdapterFile, options: ReadOptions) -> AdapterState:
        """Read a layer with four dimensions as a butterfly, all others as rotations."""
        from orthotune.formats.codecs.oft_blocks import read_blocks

        return read_blocks(file, self.name, "lycoris", _blend(file))


def _blend(file: AdapterFile) -> Blend:
    """How to interpolate: versions before 3.0, whose hash does not begin with ``0x``, blend only the first stage."""
    hashed = file.metadata.get("sshs_model_hash")
    return "first_stage" if hashed and not hashed.startswith("0x") else "stages"
