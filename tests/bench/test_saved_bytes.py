"""The counter counts known cases exactly."""

from __future__ import annotations

import torch
from torch import nn

from harness.saved_bytes import peak_bytes, saved_bytes

CPU = torch.device("cpu")


def test_a_frozen_linear_keeps_nothing_of_its_own() -> None:
    model = nn.Linear(7, 5).requires_grad_(False)
    x = torch.randn(3, 7, requires_grad=True)
    assert saved_bytes(lambda: model(x), model) == 0


def test_a_frozen_linear_and_a_known_operation() -> None:
    model = nn.Linear(7, 5).requires_grad_(False)
    x = torch.randn(3, 7, requires_grad=True)
    assert saved_bytes(lambda: model(x).exp(), model) == 3 * 5 * 4  # exp keeps its result


def test_a_trained_linear_keeps_its_input_once() -> None:
    model = nn.ModuleList([nn.Linear(7, 5), nn.Linear(7, 6)])
    x = torch.randn(3, 7, requires_grad=True)
    assert saved_bytes(lambda: torch.cat([layer(x) for layer in model], -1), model) == 3 * 7 * 4


def test_a_view_counts_as_the_storage_that_it_keeps_alive() -> None:
    x = torch.randn(4, 8, requires_grad=True)
    y = torch.randn(4, 8)
    # half of y is enough for x's gradient; y asks for none, so x is not kept
    assert saved_bytes(lambda: x[:2] * y[:2], nn.Identity()) == 4 * 8 * 4


def test_buffers_of_the_model_do_not_count() -> None:
    model = nn.Module()
    model.register_buffer("scale", torch.randn(4, 8))
    x = torch.randn(4, 8, requires_grad=True)
    assert saved_bytes(lambda: x * model.scale, model) == 0


def test_without_gradients_nothing_is_kept() -> None:
    with torch.no_grad():
        assert saved_bytes(lambda: torch.randn(3).exp(), nn.Identity()) == 0


def test_a_cpu_has_no_peak() -> None:
    assert peak_bytes(lambda: None, CPU) is None
