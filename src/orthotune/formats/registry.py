"""The registry of formats, in the order in which they are listed. All other lists of formats are made from it.

Importing the registry imports neither torch nor safetensors, so that help can list the targets. The function
:func:`orthotune.formats.writers.write_adapter` writes a format; it needs all prefixes to spell the layer names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from orthotune.errors import AdapterFileError
from orthotune.files.names import escaped
from orthotune.formats.comfyui import ComfyUI
from orthotune.formats.format import Format
from orthotune.formats.kohya.boft import KohyaBoft
from orthotune.formats.kohya.oft import KohyaOft
from orthotune.formats.kohya.oft_flux import KohyaOftFlux
from orthotune.formats.kohya.oft_v2 import KohyaOftV2
from orthotune.formats.lycoris.boft import LycorisBoft
from orthotune.formats.lycoris.oft import LycorisOft
from orthotune.formats.lycoris.oft_2_0 import LycorisOft20
from orthotune.formats.names.prefixes import BARE, Prefix
from orthotune.formats.onetrainer import OneTrainer
from orthotune.formats.original.control import OftControl
from orthotune.formats.original.diffusers import OftDb, OftT2i
from orthotune.formats.peft.boft import PeftBoft, PeftBoft11
from orthotune.formats.peft.hra import PeftHra
from orthotune.formats.peft.oft import Orthotune, PeftOft, PeftOft16
from orthotune.formats.peft.oft_08 import PeftOft08
from orthotune.formats.peft.oft_14 import PeftOft14
from orthotune.formats.peft.psoft import PeftPsoft
from orthotune.formats.peft.road import PeftRoad

if TYPE_CHECKING:
    from pathlib import Path

    from orthotune.formats.adapter_file import AdapterFile
    from orthotune.formats.adapter_state import AdapterState
    from orthotune.formats.read_options import ReadOptions

FORMATS: tuple[Format, ...] = (
    Orthotune(), PeftOft(), PeftOft16(), PeftOft14(), PeftOft08(), PeftBoft(), PeftBoft11(), PeftHra(), PeftRoad(),
    PeftPsoft(), KohyaBoft(), KohyaOftV2(), OneTrainer(), KohyaOft(), KohyaOftFlux(), LycorisOft(), LycorisBoft(),
    LycorisOft20(), ComfyUI(), OftControl(), OftDb(), OftT2i(),
)  # fmt: skip


def targets() -> dict[str, Format]:
    """Target id -> format, for all formats that can be written.

    Example:
        >>> list(targets())[:3]
        ['orthotune', 'peft', 'peft-0.16']
    """
    return {format.target: format for format in FORMATS if format.target is not None}


def format_called(name: str) -> Format | None:
    """The format with an id, or None.

    Example:
        >>> format_called("lycoris-oft-2.0").producer
        'LyCORIS 2.0, Diag-OFT'
    """
    return next((format for format in FORMATS if format.name == name), None)


def prefixes() -> tuple[Prefix, ...]:
    """The prefixes of module names in files of all formats, without duplicates.

    Example:
        >>> ("oft_unet_", ("unet", "transformer"), True) in prefixes()
        True
    """
    return tuple(dict.fromkeys([*BARE, *(prefix for format in FORMATS for prefix in format.prefixes)]))


def read_adapter(path: str | Path, options: ReadOptions | None = None) -> AdapterState:
    """Read the adapter at a path; the format is detected.

    Args:
        path: a folder as PEFT writes it, or one file: safetensors, or a pickle that holds only tensors.
        options: facts that the file does not record.

    Raises:
        AdapterFileError: the file matches no format, or more than one, or the reader of its format finds a fault.

    Example:
        >>> import tempfile, torch
        >>> from safetensors.torch import save_file
        >>> path = f"{tempfile.mkdtemp()}/style.safetensors"
        >>> save_file({"lora_unet_blk_lin.oft_R.weight": torch.ones(2, 3)}, path)
        >>> state = read_adapter(path)
        >>> state.format, state.layers["lora_unet_blk_lin"].block_size()
        ('onetrainer', 3)
    """
    from orthotune.formats.adapter_file import open_adapter
    from orthotune.formats.read_options import ReadOptions

    return read_file(open_adapter(path), options or ReadOptions())


def read_file(file: AdapterFile, options: ReadOptions) -> AdapterState:
    """Read the adapter in an opened file; the format is detected.

    Args:
        file: opened, its tensors not read yet.
        options: facts that the file does not record.

    Raises:
        AdapterFileError: the file matches no format, or more than one, or the reader of its format finds a fault.
    """
    found = [format for format in FORMATS if format.detect(file, options)]
    if len(found) > 1:
        raise AdapterFileError(
            f"{file.path} mixes formats", got=f"tensors of {' and '.join(format.name for format in found)}",
            needed="one", do="Load the complete file with the tool that wrote it",
        )  # fmt: skip
    if not found:
        raise AdapterFileError(
            f"{file.path} is not an adapter that orthotune knows", got=escaped(file.shapes) or "no tensor at all",
            needed="rotations: oft_R, oft_r, oft_blocks, oft_diag, boft_R, hra_u, road_theta, psoft_R or R; or a "
            "folder with adapter_config.json",
        )  # fmt: skip
    return found[0].read(file, options)
