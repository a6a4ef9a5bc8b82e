"""sd-scripts ``networks.oft``: ``oft_unet_`` and ``oft_blocks`` of three dimensions, ``alpha``."""

from __future__ import annotations

from orthotune.formats.adapter_file import AdapterFile
from orthotune.formats.adapter_state import AdapterState
from orthotune.formats.codecs.oft_blocks import KOHYA_PREFIX, read_blocks
from orthotune.formats.read_options import ReadOptions

ID = "kohya-oft"


def detect(file: AdapterFile) -> bool:
    """Whether the file holds such blocks under sd-scripts' prefix."""
    return any(stem.startswith(KOHYA_PREFIX) for stem in file.layers("oft_blocks"))


def read(file: AdapterFile, options: ReadOptions) -> AdapterState:
    """The adapter: ``W' = C+(clip(K))ᵀ W`` with ``K = A - Aᵀ``.

    Raises:
        AdapterFileError: a tensor has a wrong shape, or belongs to another method.
    """
    return read_blocks(file, ID, "kohya")
