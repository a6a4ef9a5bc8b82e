from __future__ import annotations

from pathlib import Path

import matplotlib.image
import pytest

from orthotune.runs.curve import draw_curve

STEPS = [{"step": step, "train_loss": 3 - step / 10, "seconds": 0.0} for step in range(1, 10)]


@pytest.mark.parametrize("measured", [(), ("new_nats",), ("new_nats", "old_nats")])
def test_a_picture_is_drawn_of_what_there_is(tmp_path: Path, measured: tuple[str, ...]) -> None:
    lines = [
        {"step": 0, "seconds": 0.0, **dict.fromkeys(measured, 3.5)},
        *STEPS,
        {"step": 9, **dict.fromkeys(measured, 2.5)},
    ]
    draw_curve(lines, tmp_path / "curve.png", "a run")
    picture = matplotlib.image.imread(tmp_path / "curve.png")
    assert picture.shape[1] > 1000
    assert (picture[..., :3] < 0.5).any()


def test_panels_show_the_domains(tmp_path: Path) -> None:
    with_old = [{"step": step, "old_nats": 2 + step} for step in range(3)]
    draw_curve(with_old, tmp_path / "a.png", "a run")
    draw_curve([{"step": step, "new_nats": 2 + step} for step in range(3)], tmp_path / "b.png", "a run")
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()


def test_gain_and_forgetting_have_panels_where_a_domain_was_measured(tmp_path: Path) -> None:
    losses = [
        {"step": step, "train_loss": 2.0, "new_nats": 3 - step / 10, "old_nats": 2 + step / 20} for step in (0, 5)
    ]
    older, newer = tmp_path / "older.png", tmp_path / "newer.png"
    draw_curve(losses, older, "a run")
    draw_curve(
        [{**losses[0], "gain": 0.0, "forgetting": 0.0}, {**losses[1], "gain": 0.5, "forgetting": 0.25}], newer, "a run"
    )
    assert older.read_bytes() == newer.read_bytes()  # logs from before the keys are drawn all the same
    draw_curve([{"step": step, "train_loss": 2.0} for step in (1, 2)], tmp_path / "none.png", "a run")
    heights = [matplotlib.image.imread(path).shape[0] for path in (older, tmp_path / "none.png")]
    assert heights[0] > 1.5 * heights[1]
    draw_curve([line | {"new_nats": None, "old_nats": None} for line in losses], tmp_path / "nan.png", "a run")
