"""A bar on stderr for work that is measured in bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


@contextmanager
def bytes_bar() -> Iterator[Callable[[str, int, int | None], None]]:
    """Yield a function that advances the bar; the bar appears with its first call.

    The function takes the description of the work, the number of bytes done since the last call, and the total number
    of bytes, or None where the total is unknown.

    Example:
        >>> with bytes_bar() as progress:
        ...     progress("merging", 100, 200)
    """
    shown: list[Progress] = []
    with ExitStack() as end:

        def advance(what: str, size: int, total: int | None) -> None:
            if not shown:
                shown.append(end.enter_context(_bar()))
                shown[0].add_task(what, total=total)
            shown[0].update(shown[0].task_ids[0], description=what, advance=size)

        yield advance


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    return Progress(*columns, console=Console(stderr=True), transient=True)
