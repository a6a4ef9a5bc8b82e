"""A bar on stderr for work that is measured in bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def bytes_bar() -> Iterator[Callable[[str, int, int | None], None]]:
    """A function that moves the bar: what is being done, how many bytes more, and how many there are if that is known.

    Example:
        >>> with bytes_bar() as progress:
        ...     progress("merging", 100, 200)
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:

        def advance(what: str, size: int, total: int | None) -> None:
            task = bar.task_ids[0] if bar.task_ids else bar.add_task(what, total=total)
            bar.update(task, description=what, advance=size)

        yield advance
