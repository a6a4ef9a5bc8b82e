"""What a GPU gives one block of threads, and what the GPU at hand is."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

Maker = Literal["NVIDIA", "AMD", "Intel", "Apple", "unknown"]


class Card(NamedTuple):
    """A GPU as far as the choice of a kernel depends on it.

    Args:
        name: as the driver or the maker spells it.
        maker: of the GPU.
        architecture: ``sm_89``, ``gfx942``, or empty where nothing depends on it.
        shared: bytes of shared memory (AMD: LDS, Intel: SLM) that one block of threads may use.
    """

    name: str
    maker: Maker
    architecture: str
    shared: int

    @property
    def capability(self) -> int:
        """Of an NVIDIA GPU, 89 for ``sm_89``; 0 for every other one.

        Example:
            >>> CARDS["sm_89"].capability, CARDS["gfx942"].capability
            (89, 0)
        """
        return int(self.architecture[3:]) if self.architecture.startswith("sm_") else 0


def _nvidia(capability: int, kib: int, name: str) -> Card:
    return Card(name, "NVIDIA", f"sm_{capability}", kib << 10)


def _amd(architecture: str, kib: int, name: str) -> Card:
    return Card(name, "AMD", architecture, kib << 10)


#: by architecture. Sources: CUDA C++ Programming Guide, table "Technical Specifications per Compute Capability",
#: maximum amount of shared memory per thread block; AMD ROCm documentation, "Accelerator and GPU hardware
#: specifications", LDS.
CARDS: dict[str, Card] = {
    card.architecture: card
    for card in (
        _nvidia(75, 64, "Tesla T4, RTX 20"),
        _nvidia(80, 163, "A100"),
        _nvidia(86, 99, "RTX 30, A40"),
        _nvidia(89, 99, "RTX 40, L40"),
        _nvidia(90, 227, "H100, H200"),
        _nvidia(100, 227, "B200"),
        _nvidia(120, 99, "RTX 50"),
        _amd("gfx90a", 64, "MI200"),
        _amd("gfx942", 64, "MI300"),
        _amd("gfx1100", 64, "RX 7900"),
    )
}
#: what is assumed of a GPU that cannot be asked: what every supported one gives
LEAST = Card("an unknown GPU", "unknown", "", 48 << 10)
_found: dict[tuple[str, int | None], Card] = {}


def card_of(device: str | torch.device) -> Card:
    """The GPU that ``device`` names; asked once for each.

    Args:
        device: such as ``"cuda"``, ``"cuda:1"``, ``"xpu"`` or ``"mps"``.

    Example:
        >>> card_of("mps").maker
        'Apple'
    """
    where = torch.device(device)
    key = (where.type, where.index)
    card = _found.get(key)
    if card is None:
        card = _asked(where.type, where.index)
        _found[key] = card
    return card


@torch.compiler.assume_constant_result
def _asked(kind: str, index: int | None) -> Card:
    if kind == "mps":
        return Card("an Apple GPU", "Apple", "", 32 << 10)
    if kind == "xpu":
        if not torch.xpu.is_available():
            return LEAST._replace(maker="Intel")
        found = torch.xpu.get_device_properties(index or 0)
        return Card(found.name, "Intel", "", getattr(found, "local_mem_size", 0) or LEAST.shared)
    if kind != "cuda" or not torch.cuda.is_available():
        return LEAST
    about = torch.cuda.get_device_properties(torch.cuda.current_device() if index is None else index)
    if torch.version.hip is not None:
        architecture = about.gcnArchName.partition(":")[0]
        known = CARDS.get(architecture, LEAST).shared
        return Card(about.name, "AMD", architecture, getattr(about, "shared_memory_per_block", known))
    return _nvidia_card(about)


def _nvidia_card(about: object) -> Card:
    name, major, minor = (getattr(about, field) for field in ("name", "major", "minor"))
    architecture = f"sm_{major * 10 + minor}"
    known = CARDS.get(architecture, LEAST).shared
    return Card(name, "NVIDIA", architecture, getattr(about, "shared_memory_per_block_optin", known))
