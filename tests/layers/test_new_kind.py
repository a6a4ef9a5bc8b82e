"""A new layer kind is a class, an entry of the package's registry and an entry of the contracts' one.

The steps of docs/contributing/add-a-layer-kind.md, taken for a module that exists in this test alone.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from orthotune.errors import UnsupportedLayerError
from orthotune.layers import registry
from orthotune.layers.base import OFTLayer
from tests.contracts import (
    test_export,
    test_files,
    test_forward,
    test_looked_at,
    test_merge,
    test_orthogonality,
    test_reference,
    test_replicas,
    test_strength,
    test_writes,
)
from tests.support.contract_cases import OPTIONS, Case
from tests.support.contract_layers import Kind, Net, Turn


class Patches(nn.Module):
    """Patches ``(n, rows, columns)`` projected to ``(n, out)``; the weight is ``(out, rows, columns)``."""

    def __init__(self, rows: int, columns: int, out: int) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns
        self.weight = nn.Parameter(torch.randn(out, rows, columns) / 3)
        self.bias = nn.Parameter(torch.randn(out) / 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("nrc,orc->no", x, self.weight) + self.bias


class PatchProjection(OFTLayer):
    """The weight of :class:`Patches` is a matrix ``(out, rows * columns)``."""

    beyond_peft: ClassVar[str] = "patch projections"

    def matrices(self) -> dict[str, Tensor]:
        return {"": self.get_base_layer().weight.flatten(1)}

    def assemble(self, matrices: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"weight": matrices[""].view(self.get_base_layer().weight.shape)}


#: the entry of tests/support/contract_layers.py
KIND = Kind(
    "patches", lambda: Net(Patches(3, 4, 8)), lambda: (torch.randn(5, 3, 4),), (Turn("layer.weight", "conv"),),
    free=(0,),
)  # fmt: skip
MODULES = (
    test_files, test_forward, test_looked_at, test_merge, test_orthogonality, test_reference, test_replicas,
    test_strength, test_writes,
)  # fmt: skip


def _contracts() -> Iterator[tuple[Callable[..., None], list[Case]]]:
    """Contracts that ask for a case alone, and the cases that an entry gets: those of another kind, which it replaces.

    With an entry of the registry every other contract gets cases as well.
    """
    for name, contract in (pair for module in MODULES for pair in vars(module).items()):
        marks = [mark.args for mark in getattr(contract, "pytestmark", ()) if mark.name == "parametrize"]
        if name.startswith("test_") and [names for names, *_ in marks] == ["case"]:
            found = [replace(case, kind=KIND) for case in marks[0][1] if case.kind.name == "conv2d_groups"]
            if found:
                yield contract, found


CONTRACTS = list(_contracts())


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "KINDS", [*registry.KINDS, ((Patches,), PatchProjection)])
    own = dict(CONTRACTS)[test_writes.test_no_write_is_missed]
    monkeypatch.setattr(test_writes, "CASES", [*test_writes.CASES, *own])  # where a case stands decides its states


@pytest.mark.parametrize(("contract", "cases"), CONTRACTS, ids=lambda part: getattr(part, "__name__", ""))
@pytest.mark.usefixtures("registered")
def test_a_new_kind_keeps_the_contract(contract: Callable[..., None], cases: list[Case], tmp_path: Path) -> None:
    for case in cases:
        (folder := tmp_path / str(case)).mkdir()
        contract(case, **({"tmp_path": folder} if "tmp_path" in inspect.signature(contract).parameters else {}))


def test_the_contracts_are_found() -> None:
    found = {contract.__name__: cases for contract, cases in CONTRACTS}
    assert len(found) > 25 and sum(map(len, found.values())) > 100
    assert {case.options for case in found["test_forward_equals_merged_forward"]} == set(OPTIONS)


@pytest.mark.usefixtures("registered")
def test_a_saved_adapter_of_a_new_kind_is_refused_by_stock_peft(tmp_path: Path) -> None:
    Case(KIND).trained().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] == "ORTHOTUNE" and config["needs_orthotune_for"] == ["patch projections"]


@pytest.mark.usefixtures("registered")
def test_a_new_kind_is_exported_with_a_free_batch() -> None:
    test_export.test_an_exported_program_takes_any_batch_and_length(Case(KIND))


def test_without_the_entry_it_is_refused() -> None:
    with pytest.raises(UnsupportedLayerError, match=r"layer 'layer'\. Found: a .*Patches"):
        Case(KIND).fresh()
