"""OFT of PEFT 0.14 and 0.15: dense ``oft_r`` on the input side and a scale ``oft_s``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from orthotune.formats.kinds import IN_WITH_SCALE, SERIES_IN
from orthotune.formats.peft.folder import LATER, OFT, PeftFolder

if TYPE_CHECKING:
    from torch import Tensor

    from orthotune.formats.adapter_file import AdapterFile
    from orthotune.formats.adapter_state import AdapterState, LayerState
    from orthotune.formats.read_options import ReadOptions


class PeftOft14(PeftFolder):
    """``W' = oft_s (W C-((A - Aᵀ) / 2)ᵀ)``."""

    name = "peft-oft-0.14"
    producer = "PEFT 0.14 or 0.15"
    target = "peft-0.14"
    tool = "PEFT 0.14 and 0.15"
    lossless, approximate = IN_WITH_SCALE, SERIES_IN
    shared = scale = True
    fields = OFT | LATER | {"peft_type": "OFT"}

    def detect(self, file: AdapterFile, options: ReadOptions) -> bool:
        """Whether the file holds dense blocks and a scale."""
        return file.has("oft_r") and file.has("oft_s")

    def read(self, file: AdapterFile, options: ReadOptions) -> AdapterState:
        """Read each layer as a rotation with a scale, projected to the COFT ball if the config has COFT."""
        from orthotune.formats.peft.dense import read_14

        return read_14(file, self.name)

    def encoded(
        self, state: AdapterState, keys: Mapping[str, str], layers: Mapping[str, LayerState]
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Encode dense blocks and scales, and a common block size or number of blocks."""
        from orthotune.formats.peft.sizes import common_size, for_all
        from orthotune.formats.peft.tensors import columns, dense

        tensors = dense(state, keys, 1.0) | columns(state, keys)
        return tensors, for_all(layers, "block_share") | common_size(layers, state.config)
