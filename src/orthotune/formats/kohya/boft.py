"""sd-scripts ``networks.boft``: the butterflies of PEFT under the names of sd-scripts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from orthotune.formats.codecs.suffixes import BUTTERFLY
from orthotune.formats.format import Format
from orthotune.formats.kinds import IN_BUTTERFLY, IN_WITH_SCALE, SERIES_IN
from orthotune.formats.names.prefixes import LORA, PEFT

if TYPE_CHECKING:
    from orthotune.formats.adapter_file import AdapterFile
    from orthotune.formats.adapter_state import AdapterState
    from orthotune.formats.read_options import ReadOptions


class KohyaBoft(Format):
    """``W' = boft_s (W Bᵀ)``; at strength ``s`` the weight is ``W + s (W' - W)``."""

    name = target = "kohya-boft"
    producer = "sd-scripts, networks.boft"
    prefixes = LORA
    tool = "sd-scripts networks.boft"
    lossless, approximate = IN_WITH_SCALE | {IN_BUTTERFLY}, SERIES_IN
    scale = True

    def detect(self, file: AdapterFile, options: ReadOptions) -> bool:
        """Whether the file holds butterflies and has neither the config nor the names of PEFT."""
        stems = file.layers(BUTTERFLY)
        return file.config is None and bool(stems) and not any(stem.startswith(PEFT[0][0]) for stem in stems)

    def read(self, file: AdapterFile, options: ReadOptions) -> AdapterState:
        """Read a layer with one factor as a rotation, all others as butterflies."""
        from orthotune.formats.codecs.boft_r import read_butterflies
        from orthotune.formats.codecs.dense_blocks import refuse_foreign

        refuse_foreign(file, file.layers(BUTTERFLY))
        return read_butterflies(file, self.name, "linear", legacy_conv=False)

    def write(self, state: AdapterState, out: Path, names: Mapping[str, str]) -> Path:
        """Write blocks and scales; the scale of a convolution is a column as well."""
        from orthotune.files.safetensors_file import write_tensors
        from orthotune.formats.codecs.boft_r import boft_tensors
        from orthotune.formats.codecs.written_header import header, kohya_hash

        tensors = boft_tensors(state, names, conv_row=False)
        size = max(tensor.shape[-1] for name, tensor in tensors.items() if name.endswith(".boft_R"))
        found = header(state.metadata, "networks.boft", size, {})
        return write_tensors(out, tensors, found | {"sshs_model_hash": kohya_hash(tensors)})
