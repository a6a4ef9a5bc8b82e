"""OFT of PEFT 0.8 to 0.13: dense ``oft_r`` on the output side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from orthotune.formats.kinds import EXACT_OUT, SERIES_OUT, TRUNCATED
from orthotune.formats.peft.folder import OFT, PeftFolder

if TYPE_CHECKING:
    from torch import Tensor

    from orthotune.formats.adapter_file import AdapterFile
    from orthotune.formats.adapter_state import AdapterState, LayerState
    from orthotune.formats.read_options import ReadOptions


class PeftOft08(PeftFolder):
    """``W' = (C-((A - Aᵀ) / 2)[:out, :out])ᵀ W``; the last block may be truncated."""

    name = "peft-oft-0.8"
    producer = "PEFT 0.8 to 0.13"
    target = "peft-0.8"
    tool = "PEFT 0.8 to 0.13"
    lossless, approximate = frozenset({EXACT_OUT, TRUNCATED}), SERIES_OUT
    side = "out"
    fields = OFT | {"peft_type": "OFT", "alpha_pattern": {}}

    def detect(self, file: AdapterFile, options: ReadOptions) -> bool:
        """Whether the file holds dense blocks, no scale, and no field of a later version."""
        return file.has("oft_r") and not file.has("oft_s") and "oft_block_size" not in (file.config or {})

    def read(self, file: AdapterFile, options: ReadOptions) -> AdapterState:
        """Read each layer as a rotation, projected to the COFT ball if the config has COFT."""
        from orthotune.formats.peft.dense import read_08

        return read_08(file, self.name)

    def encoded(
        self, state: AdapterState, keys: Mapping[str, str], layers: Mapping[str, LayerState]
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Encode dense blocks, transposed compared with later versions, and the number of blocks of each layer."""
        from orthotune.formats.peft.sizes import counts_of, for_all
        from orthotune.formats.peft.tensors import dense

        return dense(state, keys, -1.0), for_all(layers, "block_share") | counts_of(layers)
