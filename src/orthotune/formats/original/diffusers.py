"""The original OFT program for diffusers, oft-db and oft-t2i: ``R`` in the attention processors."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from orthotune.formats.format import Format
from orthotune.formats.names.prefixes import DIFFUSERS

if TYPE_CHECKING:
    from orthotune.formats.adapter_file import AdapterFile
    from orthotune.formats.adapter_state import AdapterState
    from orthotune.formats.read_options import ReadOptions


class OftDb(Format):
    """``W' = W C-((R - Rᵀ) / 2)ᵀ``; the file does not record whether the run used COFT."""

    name = "oft-db"
    producer = "the original program, oft-db"
    prefixes = DIFFUSERS

    def detect(self, file: AdapterFile, options: ReadOptions) -> bool:
        """Whether the file holds matrices ``R`` of processors, without the COFT settings that oft-t2i stores."""
        return _of_processors(file) and not _stores_coft(file)

    def read(self, file: AdapterFile, options: ReadOptions) -> AdapterState:
        """Read the blocks as stored, unless ``options`` say that the run used COFT."""
        from orthotune.formats.original.processors import read_processors

        state = read_processors(file, self.name, options)
        if options.coft is not None:
            return state
        warning = (
            "oft-db does not record whether the run used COFT: the blocks are read as stored, which is correct "
            "unless the file was saved between an optimizer step and the next forward"
        )
        return replace(state, warnings=(*state.warnings, warning))


class OftT2i(Format):
    """The same, with the COFT settings stored with each rotation."""

    name = "oft-t2i"
    producer = "the original program, oft-t2i"
    prefixes = DIFFUSERS

    def detect(self, file: AdapterFile, options: ReadOptions) -> bool:
        """Whether the file holds matrices ``R`` of processors together with their COFT settings."""
        return _of_processors(file) and _stores_coft(file)

    def read(self, file: AdapterFile, options: ReadOptions) -> AdapterState:
        """Read the blocks, projected to the COFT ball where the file says so."""
        from orthotune.formats.original.processors import read_processors

        return read_processors(file, self.name, options)


def _of_processors(file: AdapterFile) -> bool:
    return any(stem.endswith("_oft") for stem in file.layers("R"))


def _stores_coft(file: AdapterFile) -> bool:
    return any({"R", "oft_is_coft"} <= set(names) for names in file.layers("R|oft_is_coft").values())
