"""OFT_2 of OneTrainer: packed triangles without a config, with or without the marker ``scaled_oft``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from orthotune.formats.codecs.suffixes import PACKED
from orthotune.formats.format import Format
from orthotune.formats.kinds import EXACT_IN, LEGACY, OTHER_SERIES, SERIES
from orthotune.formats.kohya.oft_v2 import MODULE
from orthotune.formats.names.prefixes import CHECKPOINT, DIFFUSERS, LORA, ONETRAINER

if TYPE_CHECKING:
    from orthotune.formats.adapter_file import AdapterFile
    from orthotune.formats.adapter_state import AdapterState
    from orthotune.formats.read_options import ReadOptions


class OneTrainer(Format):
    """The Neumann series of 5 terms on the input side; convolutions are rotated in the opposite direction.

    ``options.series="legacy"`` reads a file of the commit of 2025-11-14, which the file does not record.
    """

    name = target = "onetrainer"
    producer = "OneTrainer, OFT_2"
    prefixes = (*LORA, *ONETRAINER, *DIFFUSERS, *CHECKPOINT)
    tool = "OneTrainer OFT_2, and ComfyUI-OFTv2"
    lossless, approximate = frozenset({SERIES}), frozenset({EXACT_IN, LEGACY, OTHER_SERIES})
    conv_reversed = shared = True
    spellings: ClassVar = {**Format.spellings, "text_encoder_4": "lora_te4_"}
    transformers = "lora_transformer_"

    def detect(self, file: AdapterFile, options: ReadOptions) -> bool:
        """Whether the file holds such triangles and the header does not name the module of sd-scripts."""
        named = file.metadata.get("ss_network_module") == MODULE
        return file.config is None and not named and file.has(PACKED)

    def read(self, file: AdapterFile, options: ReadOptions) -> AdapterState:
        """Read rotations, with COFT if the settings in the header have it."""
        from orthotune.formats.codecs.oft_r import read_packed

        return read_packed(file, self.name, options, _radius, scaled=True, blend="none")

    def write(self, state: AdapterState, out: Path, names: Mapping[str, str]) -> Path:
        """Write packed triangles; the header of OneTrainer names no module."""
        from orthotune.files.safetensors_file import write_tensors
        from orthotune.formats.codecs.oft_r import packed_tensors
        from orthotune.formats.codecs.written_header import header

        found = header(state.metadata, None, None, {})
        found.setdefault("modelspec.sai_model_spec", "1.0.0")
        return write_tensors(out, packed_tensors(state, names), found)


def _radius(file: AdapterFile) -> float | None:
    from orthotune.formats.codecs.oft_r import settings_in

    found = settings_in(file, "ot_config")
    return float(found["coft_eps"]) if found.get("oft_coft") else None
