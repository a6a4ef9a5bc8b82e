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
