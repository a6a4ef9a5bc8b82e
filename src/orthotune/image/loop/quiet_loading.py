"""Reading models without the bars of diffusers and transformers, which show for a moment what nobody waits for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Switch both libraries' bars off, and on again afterwards if they were on."""
    import diffusers.utils.logging
    import transformers.utils.logging

    rooms: list[Any] = [diffusers.utils.logging, transformers.utils.logging]
    loud = [room for room in rooms if room.is_progress_bar_enabled()]
    for room in loud:
        room.disable_progress_bar()
    try:
        yield
    finally:
        for room in loud:
            room.enable_progress_bar()
