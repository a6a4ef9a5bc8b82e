"""``orthotune studio``: a page in the browser to start, watch and use runs."""

from __future__ import annotations

from pathlib import Path

import typer


def studio(
    folders: list[Path] = typer.Argument(
        None, help="Folders that the page may read; runs are written to the first one. Default: the current folder."
    ),
    host: str = typer.Option(
        "127.0.0.1", "--host", help="Address to listen on; others than this machine's own need a password."
    ),
    port: int = typer.Option(7860, "--port", min=0, max=65535, help="Port; 0 takes a free one."),
) -> None:
    """Start, watch, stop, use and compare runs on a page in the browser.

    Only this machine reaches the page, unless ORTHOTUNE_STUDIO_PASSWORD has a password (of the user `studio`). Runs are
    processes of their own: they go on when the page or this command ends.

    Examples:

      orthotune studio

      orthotune studio work photos --port 8000
    """
    from orthotune.studio.folders import Folders
    from orthotune.studio.server import serve

    serve(Folders(folders or [Path()]), host, port, typer.echo)
