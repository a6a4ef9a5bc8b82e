"""sd-scripts ``networks.boft``: PEFT's butterflies under sd-scripts' names."""

from __future__ import annotations

from orthotune.formats.adapter_file import AdapterFile
from orthotune.formats.adapter_state import AdapterState
from orthotune.formats.codecs.boft_r import SUFFIXES, read_butterflies
from orthotune.formats.codecs.dense_blocks import refuse_foreign
from orthotune.formats.peft.names import PREFIX
from orthotune.formats.read_options import ReadOptions

ID = "kohya-boft"


def detect(file: AdapterFile) -> bool:
    """Whether there are butterflies without PEFT's config and names."""
    stems = file.layers(SUFFIXES)
    return file.config is None and bool(stems) and not any(stem.startswith(PREFIX) for stem in stems)


def read(file: AdapterFile, options: ReadOptions) -> AdapterState:
    """The adapter: ``W' = boft_s (W Bᵀ)``, at a strength ``W + s (W' - W)``.

    Raises:
        AdapterFileError: a tensor is missing, has a wrong shape, or belongs to another method.
    """
    refuse_foreign(file, file.layers(SUFFIXES))
    return read_butterflies(file, ID, "linear", scrambled=False)
