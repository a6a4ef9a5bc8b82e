"""sd-scripts ``networks.oft_v2``: packed triangles without a config, told by the module that the header names."""

from __future__ import annotations

from orthotune.formats.adapter_file import AdapterFile
from orthotune.formats.adapter_state import AdapterState
from orthotune.formats.codecs.oft_r import read_packed, stands_alone
from orthotune.formats.read_options import ReadOptions

ID = "kohya-oft-v2"
MODULE = "networks.oft_v2"


def detect(file: AdapterFile) -> bool:
    """Whether sd-scripts is named in the header."""
    return stands_alone(file) and file.metadata.get("ss_network_module") == MODULE


def read(file: AdapterFile, options: ReadOptions) -> AdapterState:
    """The adapter: series of 5 terms on the input side, convolutions the other way.

    Raises:
        AdapterFileError: a tensor has a wrong shape, or belongs to another method.
    """
    return read_packed(file, ID, options)
