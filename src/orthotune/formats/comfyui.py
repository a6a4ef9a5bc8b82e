"""ComfyUI, which reads the ``oft_blocks`` of LyCORIS under the names of sd-scripts and writes no adapters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from orthotune.errors import UnsupportedLayerError
from orthotune.formats.format import Format
from orthotune.formats.kinds import OUT_BLOCKS, SERIES_OUT
from orthotune.formats.names.prefixes import CHECKPOINT, DIFFUSERS, LORA

if TYPE_CHECKING:
    from torch import Tensor

    from orthotune.formats.adapter_state import AdapterState


class ComfyUI(Format):
    """Files that ComfyUI loads; when read back, they have the format of LyCORIS."""

    name = "comfyui"
    prefixes = (*LORA, *DIFFUSERS, *CHECKPOINT)
    target = "comfyui"
    tool = "ComfyUI"
    lossless, approximate = OUT_BLOCKS, SERIES_OUT
    side = "out"
    scale_dims = True

    def write(self, state: AdapterState, out: Path, names: Mapping[str, str]) -> Path:
        """Write blocks; layers with a scale are written as a butterfly of one stage."""
        from orthotune.formats.codecs.oft_blocks import lycoris_header, write_blocks

        return write_blocks(state, out, names, _arranged, lycoris_header)


def _arranged(name: str, blocks: Tensor, scaled: bool) -> Tensor:
    """ComfyUI reads a scale only for butterflies, whose blocks must have an even size."""
    from orthotune.formats.codecs.oft_blocks import as_butterfly, paired

    if not scaled:
        return blocks
    count, size = blocks.shape[:2]
    if size % 2 and count % 2:
        raise UnsupportedLayerError(
            f"layer '{name}' for ComfyUI", got=f"a scale of the rows with {count} blocks of size {size}",
            needed="an even size or number of blocks: ComfyUI reads a scale only for butterflies",
        )  # fmt: skip
    return as_butterfly(paired(blocks) if size % 2 else blocks, 1)
