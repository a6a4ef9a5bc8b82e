"""LyCORIS Diag-OFT since 2.1: ``oft_blocks`` of three dimensions, ``alpha``, ``rescale``."""

from __future__ import annotations

from orthotune.formats.adapter_file import AdapterFile
from orthotune.formats.adapter_state import AdapterState
from orthotune.formats.codecs.oft_blocks import KOHYA_PREFIX, read_blocks
from orthotune.formats.read_options import ReadOptions

ID = "lycoris-oft"


def detect(file: AdapterFile) -> bool:
    """Whether the file holds such blocks under a prefix that is not sd-scripts'."""
    own = [names for stem, names in file.layers("oft_blocks").items() if not stem.startswith(KOHYA_PREFIX)]
    return bool(own) and not any(len(file.shapes[names["oft_blocks"]]) == 4 for names in own)


def read(file: AdapterFile, options: ReadOptions) -> AdapterState:
    """The adapter: ``W' = rescale (C+(clip(K))ᵀ W)`` with ``K = A - Aᵀ``.

    Raises:
        AdapterFileError: a tensor has a wrong shape, or belongs to another method.
    """
    return read_blocks(file, ID, "lycoris")
