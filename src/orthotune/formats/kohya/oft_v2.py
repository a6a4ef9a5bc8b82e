"""sd-scripts ``networks.oft_v2``: packed triangles without a config, identified by the module in the header."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from orthotune.formats.codecs.suffixes import PACKED
from orthotune.formats.format import Format
from orthotune.formats.kinds import EXACT_IN, LEGACY, OTHER_SERIES, SERIES
from orthotune.formats.names.prefixes import LORA

if TYPE_CHECKING:
    from orthotune.formats.adapter_file import AdapterFile
    from orthotune.formats.adapter_state import AdapterState
    from orthotune.formats.read_options import ReadOptions

#: value of ``ss_network_module`` in the header
MODULE = "networks.oft_v2"


class KohyaOftV2(Format):
    """The Neumann series of 5 terms on the input side; convolutions are rotated in the opposite direction."""

    name = target = "kohya-oft-v2"
    producer = "sd-scripts, networks.oft_v2"
    prefixes = LORA
    tool = "sd-scripts networks.oft_v2"
    lossless, approximate = frozenset({SERIES}), frozenset({EXACT_IN, LEGACY, OTHER_SERIES})
    conv_reversed = shared = True

    def detect(self, file: AdapterFile, options: ReadOptions) -> bool:
        """Whether the file holds such triangles and the header names the module of sd-scripts."""
        named = file.metadata.get("ss_network_module") == MODULE
        return file.config is None and named and file.has(PACKED)

    def read(self, file: AdapterFile, options: ReadOptions) -> AdapterState:
        """Read rotations with COFT applied, in sd-scripts also to convolutions; sd-scripts ignores ``scaled_oft``."""
        from orthotune.formats.codecs.oft_r import read_packed

        state = read_packed(file, self.name, options, _radius, scaled=False, blend="linear")
        return replace(state, layers={name: layer.plain() for name, layer in state.layers.items()})

    def write(self, state: AdapterState, out: Path, names: Mapping[str, str]) -> Path:
        """Write packed triangles, with the header that distinguishes them from files of OneTrainer."""
        from orthotune.files.safetensors_file import write_tensors
        from orthotune.formats.codecs.oft_r import packed_tensors
        from orthotune.formats.codecs.written_header import header, kohya_hash

        tensors = packed_tensors(state, names)
        found = header(state.metadata, MODULE, max(layer.block_size() for layer in state.layers.values()), {})
        return write_tensors(out, tensors, found | {"sshs_model_hash": kohya_hash(tensors)})


def _radius(file: AdapterFile) -> float | None:
    from orthotune.formats.codecs.oft_r import settings_in

    found = settings_in(file, "ss_network_args")
    return float(found["coft_eps"]) if found.get("coft_eps") else None
