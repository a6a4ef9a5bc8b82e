"""The formats, in the order in which they are asked whether a file is theirs."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from orthotune.errors import AdapterFileError
from orthotune.files.names import escaped
from orthotune.formats import onetrainer
from orthotune.formats.adapter_file import CONFIG_NAME, AdapterFile, open_adapter
from orthotune.formats.adapter_state import AdapterState
from orthotune.formats.codecs import finished_blocks
from orthotune.formats.kohya import boft as kohya_boft
from orthotune.formats.kohya import oft as kohya_oft
from orthotune.formats.kohya import oft_flux, oft_v2
from orthotune.formats.lycoris import boft as lycoris_boft
from orthotune.formats.lycoris import oft as lycoris_oft
from orthotune.formats.original import dense_r, diffusers
from orthotune.formats.peft import boft as peft_boft
from orthotune.formats.peft import oft_08, oft_14, packed
from orthotune.formats.read_options import ReadOptions

FORMATS: tuple[ModuleType, ...] = (
    packed, oft_14, oft_08, peft_boft, lycoris_oft, lycoris_boft, finished_blocks, kohya_oft, oft_flux,
    oft_v2, kohya_boft, onetrainer, dense_r, diffusers,
)  # fmt: skip


def read_adapter(path: str | Path, options: ReadOptions | None = None) -> AdapterState:
    """The adapter at a path, whichever format it has.

    Args:
        path: a folder as PEFT writes it, or one file: safetensors, or a pickle that holds tensors alone.
        options: what the file does not say about itself.

    Raises:
        AdapterFileError: no format knows the file, more than one does, or the one that does finds a fault.

    Example:
        >>> import tempfile, torch
        >>> from safetensors.torch import save_file
        >>> path = f"{tempfile.mkdtemp()}/style.safetensors"
        >>> save_file({"lora_unet_blk_lin.oft_R.weight": torch.ones(2, 3)}, path)
        >>> state = read_adapter(path)
        >>> state.format, state.layers["lora_unet_blk_lin"].block_size()
        ('onetrainer', 3)
    """
    file = open_adapter(path)
    return format_of(file).read(file, options or ReadOptions())


def format_of(file: AdapterFile) -> ModuleType:
    """The module that reads a file.

    Raises:
        AdapterFileError: none does, or several would read a part of it.
    """
    found = [module for module in FORMATS if module.detect(file)]
    if len(found) > 1:
        raise AdapterFileError(
            f"{file.path} mixes formats", got=f"tensors of {' and '.join(_called(module) for module in found)}",
            needed="one", do="The whole can only be loaded by the tool that wrote it",
        )  # fmt: skip
    if not found:
        raise AdapterFileError(
            f"{file.path} is not an adapter that orthotune knows", got=escaped(file.shapes) or "no tensor at all",
            needed=f"rotations: oft_R, oft_r, oft_blocks, oft_diag, boft_R or R; or a folder with {CONFIG_NAME}",
        )  # fmt: skip
    return found[0]


def _called(module: ModuleType) -> str:
    return module.__name__.rpartition(".")[2]
