"""PEFT's BOFT, 0.11 and later."""

from __future__ import annotations

from orthotune.formats.adapter_file import AdapterFile
from orthotune.formats.adapter_state import AdapterState
from orthotune.formats.codecs.boft_r import SUFFIXES, is_conv, read_butterflies
from orthotune.formats.peft.names import PREFIX
from orthotune.formats.read_options import ReadOptions

ID, ID_OLD = "peft-boft", "peft-boft-0.11"


def detect(file: AdapterFile) -> bool:
    """Whether there are butterflies with PEFT's config or PEFT's names."""
    stems = file.layers(SUFFIXES)
    return bool(stems) and (file.config is not None or any(stem.startswith(PREFIX) for stem in stems))


def read(file: AdapterFile, options: ReadOptions) -> AdapterState:
    """The adapter: ``W' = boft_s (W Bᵀ)``, and convolutions before 0.14 in the order of their memory.

    Raises:
        AdapterFileError: a tensor is missing or has a wrong shape.
    """
    convs = [n["boft_s"] for n in file.layers("boft_s").values() if is_conv(file.shapes[n["boft_s"]])]
    warnings: tuple[str, ...] = ()
    if options.boft_conv is not None:
        old = options.boft_conv == "scrambled"
    elif file.has("boft_P"):  # a buffer that was saved before 0.13
        old = True
    elif file.config is not None:  # a field that PEFT has since 0.14
        old = "exclude_modules" not in file.config
    else:
        old = False
        if convs:
            warnings = (
                f"{len(convs)} convolutions are read as PEFT 0.14 and later turned them; without the config nothing "
                "tells an older file, which needs boft_conv='scrambled'",
            )
    return read_butterflies(file, ID_OLD if old else ID, "none", old, warnings)
