from __future__ import annotations

import pytest

from orthotune.recipes.frontier import frontier


def _row(method: str, rate: float, forgetting: float | None, gain: float | None) -> dict[str, object]:
    return {"method": method, "learning_rate": rate, "forgetting": forgetting, "gain": gain}


def test_lines_run_through_rising_rates_and_mean_seeds() -> None:
    rows = [
        _row("oft", 1e-2, 0.4, 0.5),
        _row("oft", 1e-3, 0.1, 0.2),
        _row("oft", 1e-3, 0.3, 0.4),
        _row("lora", 1, 2, 3),
    ]
    found = frontier(rows)
    assert list(found) == ["oft", "lora"]
    assert found["lora"] == [(1, 2, 3)]
    assert found["oft"][0] == pytest.approx((1e-3, 0.2, 0.3)) and found["oft"][1] == (1e-2, 0.4, 0.5)


def test_runs_that_diverged_are_left_out() -> None:
    assert frontier([_row("oft", 1, None, 0.1), _row("oft", 2, 0.1, None)]) == {}
