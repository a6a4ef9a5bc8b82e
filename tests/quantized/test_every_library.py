"""The checks that every quantized layer passes, over the subjects of all installed libraries.

``pytest tests/quantized -k hqq`` runs the checks of one library together with the tests of its file.

``test_a_line_of_the_table`` also measures the line of each subject on the evidence page. With
``ORTHOTUNE_QUANTIZED_ROWS`` naming a file, the test appends the line to the file, and ``make quant-table`` joins the
files of all environments.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.quantized.adapter_checks import ADAPTER_CHECKS, check_a_wrong_write_is_undone
from tests.quantized.every_subject import every_subject, first_of_each_library
from tests.quantized.layer_checks import CHECKS, Subject, check_files, eps
from tests.quantized.measured import measure
from tests.quantized.test_eetq import kernel  # noqa: F401 (a fixture that serves EETQ's layers here, too)

EVERY = every_subject()
FIRST = first_of_each_library(EVERY)
each = pytest.mark.parametrize(("name", "subject"), EVERY.items(), ids=list(EVERY))


@each
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_layer(name: str, subject: Subject, check: Callable[[Subject], None]) -> None:
    check(subject)


@pytest.mark.parametrize("subject", FIRST.values(), ids=list(FIRST))
def test_files(subject: Subject, tmp_path: Path) -> None:
    check_files(subject, tmp_path)


@each
@pytest.mark.parametrize("check", ADAPTER_CHECKS, ids=lambda check: check.__name__)
def test_an_adapter_does_what_it_does_on_a_plain_layer(
    name: str, subject: Subject, check: Callable[[Subject], None]
) -> None:
    check(subject)


@each
def test_a_wrong_write_is_undone(name: str, subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    check_a_wrong_write_is_undone(subject, monkeypatch)


@each
def test_a_line_of_the_table(name: str, subject: Subject) -> None:
    line = measure(name, subject)
    if place := os.environ.get("ORTHOTUNE_QUANTIZED_ROWS"):
        with open(place, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    assert line["forward"] < subject.product + 8 * eps(subject.dtype)
    for gradient in ("gradient_x", "gradient_adapter"):
        # As in layer_checks.check_gradients.
        assert line[gradient] < 4 * eps(subject.dtype)
        assert line[f"{gradient}_after_eval"] < 4 * eps(subject.dtype)
    assert line["dense"] < 4 * torch.finfo(torch.float32).eps
    assert (line["merged"] is None) == bool(subject.merges)
    assert line["share"] == 1
    # Another base learns at another pace; half the float base's way is far from not learning.
    assert line["loss_before"] - line["loss"] > 0.5 * (line["float_loss_before"] - line["float_loss"])
