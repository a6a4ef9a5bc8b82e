"""The pictures of runs, drawn once for each kind of line: drawing one takes a third of a run of a few steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from orthotune.files.atomic import write_bytes
from orthotune.recipes import image_run
from orthotune.recipes.text_job import TextJob
from orthotune.runs.curve import draw_curve


@pytest.fixture(scope="session", autouse=True)
def _known_curves() -> Iterator[None]:
    """Runs that log the same columns leave the picture of the first of them."""
    with pytest.MonkeyPatch.context() as patch:
        made = TextJob.__init__
        known = tuple(_once(draw_curve) if one is draw_curve else one for one in made.__defaults__ or ())
        patch.setattr(made, "__defaults__", known)
        patch.setattr(image_run, "draw_scores", _once(image_run.draw_scores))
        yield


def _once(draw: Callable[..., None]) -> Callable[..., None]:
    known: dict[Any, bytes] = {}

    def drawn(lines: Sequence[dict[str, Any]], path: Path, title: str, *names: Any) -> None:
        columns = {key for line in lines for key, value in line.items() if value is not None}
        key = (frozenset(columns), len(lines) > 1, *map(tuple, names))
        if key not in known:
            draw(lines, path, title, *names)
            known[key] = path.read_bytes()
        else:
            write_bytes(path, known[key])

    return drawn
