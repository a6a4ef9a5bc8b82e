"""sd-scripts ``networks.oft``: the prefix ``oft_unet_``, ``oft_blocks`` with three dimensions, and ``alpha``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from orthotune.errors import UnsupportedLayerError
from orthotune.formats.format import Format
from orthotune.formats.kinds import EXACT_OUT, SERIES_OUT
from orthotune.formats.names.prefixes import KOHYA_OFT

if TYPE_CHECKING:
    from torch import Tensor

    from orthotune.formats.adapter_file import AdapterFile
    from orthotune.formats.adapter_state import AdapterState
    from orthotune.formats.read_options import ReadOptions


class KohyaOft(Format):
    """``W' = C+(clip(K))ᵀ W`` with ``K = A - Aᵀ``, for the denoiser only."""

    name = target = "kohya-oft"
    producer = "sd-scripts, networks.oft"
    prefixes = KOHYA_OFT
    tool = "sd-scripts networks.oft"
    lossless, approximate = frozenset({EXACT_OUT}), SERIES_OUT
    side = "out"
    spellings: ClassVar = {"": "oft_unet_", "unet": "oft_unet_"}
    kept = ()

    def detect(self, file: AdapterFile, options: ReadOptions) -> bool:
        """Whether the file holds such blocks under the prefix of sd-scripts."""
        return any(stem.startswith(KOHYA_OFT[0][0]) for stem in file.layers("oft_blocks"))

    def read(self, file: AdapterFile, options: ReadOptions) -> AdapterState:
        """Read each layer as a rotation on the output side."""
        from orthotune.formats.codecs.oft_blocks import read_blocks

        return read_blocks(file, self.name, "kohya")

    def write(self, state: AdapterState, out: Path, names: Mapping[str, str]) -> Path:
        """Write blocks unchanged; sd-scripts needs the same number of blocks in all layers."""
        from orthotune.formats.codecs.oft_blocks import write_blocks

        return write_blocks(state, out, names, lambda name, blocks, scaled: blocks, _header)


def _header(
    source: Mapping[str, str], written: Mapping[str, Mapping[str, Tensor]], tensors: Mapping[str, Tensor], alpha: float
) -> dict[str, str]:
    from orthotune.formats.codecs.written_header import header, kohya_hash

    counts = {parts["oft_blocks"].shape[0] for parts in written.values()}
    if len(counts) > 1:
        raise UnsupportedLayerError(
            "sd-scripts networks.oft, which needs one number of blocks for all layers",
            got=f"{' and '.join(map(str, sorted(counts)))} blocks",
            do="Write it for LyCORIS or ComfyUI, which store the number per layer",
        )
    found = header(source, "networks.oft", counts.pop(), {})
    del found["ss_network_args"]
    return found | {"ss_network_alpha": str(alpha), "sshs_model_hash": kohya_hash(tensors)}
