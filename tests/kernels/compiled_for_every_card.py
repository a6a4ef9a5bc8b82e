"""Every kernel that the library selects compiles for every card, fits, and spills nothing: ``make test-gpu-static``.

Takes many minutes of one core, so that no file of ``make test`` has it: ``test_static_table.py`` has a few kernels and
the rows of the last complete run. Triton's interpreter has to be off.
"""

from __future__ import annotations

import os

import pytest

pytest.importorskip("triton", reason="the compiler of the kernels, Triton, is not installed")

import gpu_static
from orthotune.kernels.cards import CARDS, Card
from tests.support.static_rows import faults

#: cards whose compiler may be missing from a wheel of Triton
OPTIONAL = ("AMD",)
SELECTED = os.environ.get("ORTHOTUNE_CARDS", ",".join(CARDS)).split(",")


@pytest.fixture(scope="module", params=SELECTED)
def rows(request: pytest.FixtureRequest) -> list[gpu_static.Compiled]:
    card: Card = CARDS[request.param]
    if card.maker in OPTIONAL:
        import triton

        if "amd" not in triton.backends.backends:
            pytest.skip(f"this wheel of Triton has no compiler for {card.maker}")
    return list(gpu_static.table([card]))


@pytest.mark.timeout(3600)
def test_selected_kernels_fit_and_spill_nothing(rows: list[gpu_static.Compiled]) -> None:
    # On sm_75 the Cayley map and the inverses are all that is selected.
    assert len(rows) >= 10 and all(row.selected for row in rows)
    assert not faults(rows)


@pytest.mark.timeout(3600)
def test_no_kernel_takes_long_to_compile(rows: list[gpu_static.Compiled]) -> None:
    # Of the processor, in this process and in the assembler: what else the machine does is left out. Twice the bound
    # that is published, for slower processors than the one it was measured on.
    assert max(row.seconds or 0.0 for row in rows) < 2 * gpu_static.SECONDS
