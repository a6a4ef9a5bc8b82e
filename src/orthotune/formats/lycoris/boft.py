"""LyCORIS BOFT since 2.1: ``oft_blocks`` of four dimensions, ``alpha``, ``rescale``."""

from __future__ import annotations

from orthotune.formats.adapter_file import AdapterFile
from orthotune.formats.adapter_state import AdapterState
from orthotune.formats.codecs.oft_blocks import read_blocks
from orthotune.formats.read_options import ReadOptions
from orthotune.rotation.on_weight import Blend

ID = "lycoris-boft"


def detect(file: AdapterFile) -> bool:
    """Whether the file holds such blocks; layers of three dimensions may stand beside them."""
    return file.has("oft_blocks", dims=4)


def read(file: AdapterFile, options: ReadOptions) -> AdapterState:
    """The adapter: a butterfly of ``C+(clip(K))`` on the output side, then ``rescale``.

    Raises:
        AdapterFileError: a tensor has a wrong shape, or belongs to another method.
    """
    return read_blocks(file, ID, "lycoris", _blend(file))


def _blend(file: AdapterFile) -> Blend:
    """Versions before 3.0 blend the first stage alone; their hash has no ``0x``, and they write a legacy one, too."""
    hashed = file.metadata.get("sshs_model_hash")
    return "first_stage" if hashed and not hashed.startswith("0x") else "stages"
