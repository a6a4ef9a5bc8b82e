"""OneTrainer's OFT_2: packed triangles without a config, perhaps with the marker ``scaled_oft``."""

from __future__ import annotations

from orthotune.formats.adapter_file import AdapterFile
from orthotune.formats.adapter_state import AdapterState
from orthotune.formats.codecs.oft_r import read_packed, stands_alone
from orthotune.formats.kohya.oft_v2 import MODULE
from orthotune.formats.read_options import ReadOptions

ID = "onetrainer"


def detect(file: AdapterFile) -> bool:
    """Whether there are such triangles and the header does not say that sd-scripts wrote them."""
    return stands_alone(file) and file.metadata.get("ss_network_module") != MODULE


def read(file: AdapterFile, options: ReadOptions) -> AdapterState:
    """The adapter: series of 5 terms on the input side, convolutions the other way.

    ``options.series="legacy"`` reads a file of the commit of 2025-11-14, which nothing in the file tells.

    Raises:
        AdapterFileError: a tensor has a wrong shape, or belongs to another method.
    """
    return read_packed(file, ID, options)
