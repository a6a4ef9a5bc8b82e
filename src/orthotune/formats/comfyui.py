"""ComfyUI, which reads LyCORIS' ``oft_blocks`` under sd-scripts' names and writes no adapters."""

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
    """What ComfyUI loads; a written file is read as one of LyCORIS."""

    name = "comfyui"
    prefixes = (*LORA, *DIFFUSERS, *CHECKPOINT)
    target = "comfyui"
    tool = "ComfyUI"
    lossless, approximate = OUT_BLOCKS, SERIES_OUT
    side = "out"
    scale_dims = True

    def write(self, state: AdapterState, out: Path, names: Mapping[str, str]) -> Path:
        """Blocks, as a butterfly of one stage where a scale stands beside them."""
        from orthotune.formats.codecs.oft_blocks import lycoris_header, write_blocks

        return write_blocks(state, out, names, _arranged, lycoris_header)


def _arranged(name: str, blocks: Tensor, scaled: bool) -> Tensor:
    """ComfyUI reads the scale of butterflies alone, and a butterfly's blocks have an even size."""
    from orthotune.formats.codecs.oft_blocks import as_butterfly, paired

    if not scaled:
        return blocks
    count, size = blocks.shape[:2]
    if size % 2 and count % 2:
        raise UnsupportedLayerError(
            f"layer '{name}' for ComfyUI", got=f"a scale of the rows beside {count} blocks of {size}",
            needed="an even size or number of blocks: ComfyUI reads a scale from butterflies alone",
        )  # fmt: skip
    return as_butterfly(paired(blocks) if size % 2 else blocks, 1)
