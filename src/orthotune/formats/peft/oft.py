"""The folder of PEFT since 0.16, and of orthotune: packed upper triangles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from orthotune.formats.codecs.suffixes import OTHER_METHODS
from orthotune.formats.kinds import (
    ANY_MAP,
    ANY_SCALED_MAP,
    EMBEDDING,
    EXACT_IN,
    FAMILY_KINDS,
    IN_BUTTERFLY,
    LEGACY,
    OTHER_EMBEDDING,
    OTHER_SERIES,
    PACKED,
    SERIES,
)
from orthotune.formats.peft.beyond_stock import FORMAT_VERSION, ORTHOTUNE_TYPE
from orthotune.formats.peft.folder import LATER, OFT, PeftFolder
from orthotune.formats.peft.oft_08 import PeftOft08
from orthotune.formats.peft.oft_14 import PeftOft14

if TYPE_CHECKING:
    from torch import Tensor

    from orthotune.formats.adapter_file import AdapterFile
    from orthotune.formats.adapter_state import AdapterState, LayerState
    from orthotune.formats.read_options import ReadOptions


class PackedFolder(PeftFolder):
    """A folder with packed triangles; its config decides which of the three formats it has."""

    shared = True

    def detect(self, file: AdapterFile, options: ReadOptions) -> bool:
        """Whether the file has a config, is of no other format, and the config stands for this format."""
        if file.config is None or file.has(f"boft_R|boft_s|{OTHER_METHODS}"):
            return False
        return not _is_older(file, options) and _meant(file.config, options) == self.name

    def read(self, file: AdapterFile, options: ReadOptions) -> AdapterState:
        """Read the layers with the settings in the config.

        Raises:
            AdapterFileError: a tensor has a wrong shape or belongs to another method, or the config is for another kind
                of adapter.
        """
        from orthotune.formats.peft.packed import read_folder

        return read_folder(file, self.name, options)

    def encoded(
        self, state: AdapterState, keys: Mapping[str, str], layers: Mapping[str, LayerState]
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Encode packed triangles, and one config for all layers."""
        from orthotune.formats.peft.sizes import common_size, for_all
        from orthotune.formats.peft.tensors import packed

        fields = for_all(layers, "block_share", "use_cayley_neumann", "num_cayley_neumann_terms")
        return packed(state, keys), fields | common_size(layers, state.config)


class Orthotune(PackedFolder):
    """The folder of orthotune: it has further fields, and settings per layer, that stock PEFT does not have."""

    name = target = tool = producer = "orthotune"
    lossless = ANY_MAP | ANY_SCALED_MAP | {EMBEDDING, OTHER_EMBEDDING, PACKED} | FAMILY_KINDS | {IN_BUTTERFLY}
    side = None
    channels = True
    fields = OFT | LATER | {"peft_type": ORTHOTUNE_TYPE, "r": 0, "peft_version": "0.18.0"}

    def encoded(
        self, state: AdapterState, keys: Mapping[str, str], layers: Mapping[str, LayerState]
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Encode packed triangles, the settings of most layers, and ``layer_settings`` for the others."""
        from orthotune.formats.peft.fields import fields_of_spec
        from orthotune.formats.peft.layer_settings import in_common
        from orthotune.formats.peft.names import PREFIX
        from orthotune.formats.peft.tensors import packed
        from orthotune.rotation.family import FamilyTransform

        specs = {name: layer.plain().spec for name, layer in layers.items()}
        for name, transform in state.transforms.items():
            assert isinstance(transform, FamilyTransform)
            spec = replace(transform.spec, magnitude=transform.magnitude is not None)
            specs[keys[name].removeprefix(PREFIX)] = spec
        usual, own = in_common(specs)
        return packed(state, keys), fields_of_spec(usual) | {"format_version": FORMAT_VERSION, "layer_settings": own}


class PeftOft(PackedFolder):
    """The current Neumann series, or the exact map."""

    name = "peft-oft"
    producer = "PEFT 0.18 or later, or 0.16 and later with exact rotations"
    target = "peft"
    tool = "PEFT 0.18 and later"
    lossless, approximate = frozenset({EXACT_IN, SERIES, OTHER_SERIES, EMBEDDING}), frozenset({LEGACY})
    fields = OFT | LATER | {"peft_type": "OFT", "r": 0, "peft_version": "0.18.0"}


class PeftOft16(PackedFolder):
    """The Neumann series before 0.18. Since 0.18 PEFT has another series and records its version."""

    name = "peft-oft-0.16"
    producer = "PEFT 0.16 or 0.17"
    target = "peft-0.16"
    tool = "PEFT 0.16 and 0.17"
    lossless = frozenset({EXACT_IN, LEGACY})
    fields = OFT | LATER | {"peft_type": "OFT", "r": 0}

    def read(self, file: AdapterFile, options: ReadOptions) -> AdapterState:
        """Read the layers, with a warning where the series is only inferred from the missing version."""
        state = super().read(file, options)
        if state.config.get("peft_version") or options.series is not None:
            return state
        warning = "the config records no version of PEFT, so the series is that of 0.16 and 0.17"
        return replace(state, warnings=(*state.warnings, warning))


def _is_older(file: AdapterFile, options: ReadOptions) -> bool:
    return any(older.detect(file, options) for older in (PeftOft08(), PeftOft14()))


def _meant(config: Mapping[str, Any], options: ReadOptions) -> str:
    from orthotune.formats.peft.fields import map_of_fields

    if config.get("peft_type") == ORTHOTUNE_TYPE:
        return Orthotune.name
    fields = dict(config) | ({} if options.series is None else {"neumann_series": options.series})
    return PeftOft16.name if map_of_fields(fields) == "neumann_legacy" else PeftOft.name
