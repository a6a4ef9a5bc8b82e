"""BOFT of PEFT 0.11 and later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from orthotune.formats.codecs.suffixes import BUTTERFLY
from orthotune.formats.kinds import IN_BUTTERFLY, IN_WITH_SCALE, SERIES_IN
from orthotune.formats.names.prefixes import PEFT
from orthotune.formats.peft.folder import LATER, PeftFolder

if TYPE_CHECKING:
    from torch import Tensor

    from orthotune.formats.adapter_file import AdapterFile
    from orthotune.formats.adapter_state import AdapterState, LayerState
    from orthotune.formats.read_options import ReadOptions


class PeftBoft(PeftFolder):
    """``W' = boft_s (W Bᵀ)``."""

    name = target = "peft-boft"
    producer = "PEFT's BOFT, 0.14 or later, or linear layers of an older one"
    tool = "PEFT's BOFT since 0.14"
    lossless, approximate = IN_WITH_SCALE | {IN_BUTTERFLY}, SERIES_IN
    scale = scale_dims = True
    fields = LATER | {"peft_type": "BOFT", "boft_dropout": 0.0, "peft_version": "0.18.0"}

    def detect(self, file: AdapterFile, options: ReadOptions) -> bool:
        """Whether the file holds butterflies with the config or names of PEFT, and does not show an older version."""
        return _is_boft(file) and not _is_old(file, options)

    def read(self, file: AdapterFile, options: ReadOptions) -> AdapterState:
        """Read butterflies on the input side, with a warning if the version of PEFT is unknown and matters."""
        from orthotune.formats.codecs.boft_r import is_conv, read_butterflies

        state = read_butterflies(file, self.name, "none", legacy_conv=False)
        if file.config is not None or options.boft_conv is not None:
            return state
        convs = [n["boft_s"] for n in file.layers("boft_s").values() if is_conv(file.shapes[n["boft_s"]])]
        if not convs:
            return state
        warning = (
            f"{len(convs)} convolutions are read as PEFT 0.14 and later rotate them; a file of an older version, which "
            "cannot be recognized without its config, needs boft_conv='scrambled'"
        )
        return replace(state, warnings=(warning, *state.warnings))

    def encoded(
        self, state: AdapterState, keys: Mapping[str, str], layers: Mapping[str, LayerState]
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Encode blocks and scales; the scale of a convolution is a row."""
        from orthotune.formats.codecs.boft_r import boft_tensors, one_size

        tensors = boft_tensors(state, keys, conv_row=True)
        return tensors, one_size(tensors)


class PeftBoft11(PeftFolder):
    """The same, with the legacy convolution layout."""

    name = "peft-boft-0.11"
    producer = "PEFT's BOFT, 0.11 to 0.13"

    def detect(self, file: AdapterFile, options: ReadOptions) -> bool:
        """Whether the file holds such butterflies, and the file or the options show a version before 0.14."""
        return _is_boft(file) and _is_old(file, options)

    def read(self, file: AdapterFile, options: ReadOptions) -> AdapterState:
        """Read butterflies on the input side; convolutions are exact weight transforms."""
        from orthotune.formats.codecs.boft_r import read_butterflies

        return read_butterflies(file, self.name, "none", legacy_conv=True)


def _is_boft(file: AdapterFile) -> bool:
    stems = file.layers(BUTTERFLY)
    return bool(stems) and (file.config is not None or any(stem.startswith(PEFT[0][0]) for stem in stems))


def _is_old(file: AdapterFile, options: ReadOptions) -> bool:
    """Whether the file is from before 0.14, which changed how convolutions are rotated."""
    if options.boft_conv is not None:
        return options.boft_conv == "scrambled"
    if file.has("boft_P"):  # a buffer that was saved before 0.13
        return True
    return file.config is not None and "exclude_modules" not in file.config  # a field that PEFT has since 0.14
