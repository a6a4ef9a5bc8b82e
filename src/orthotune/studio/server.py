"""The server: who may reach it, what it sends, and what a browser may fetch for its page."""

from __future__ import annotations

import base64
import hmac
import os
import re
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from orthotune.errors import OrthotuneError
from orthotune.files.platforms import has_signals
from orthotune.report.page import NAME
from orthotune.studio.folders import Folders

#: Names under which a browser on this machine reaches the server.
LOOPBACK = ("127.0.0.1", "localhost", "::1")
#: The environment variable with the password: a word of a command line can be read by every user of the machine.
PASSWORD = "ORTHOTUNE_STUDIO_PASSWORD"
#: The user of the browser's question for the password.
USER = "studio"
#: Fewest characters of a password.
SHORTEST = 12
#: What the page may load: nothing but what this server sends.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; "
    "frame-ancestors 'none'; form-action 'self'; object-src 'none'; base-uri 'self'"
)
#: A report runs no script and loads nothing.
REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'; sandbox"

#: Routes of Gradio that the page does not use: they give files of the machine, fetch addresses for the browser, and
#: write what is sent to them to the disk.
CLOSED = ("file", "proxy", "upload", "upload_progress", "stream", "deep_link", "process_recording", "custom_component",
          "component_server", "vibe-edit", "undo-vibe-edit", "vibe-code", "run-history", "runs")  # fmt: skip

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


def check_reach(host: str, password: str | None) -> None:
    """Refuse to be reached from other machines without a password.

    Args:
        host: the address to listen on.
        password: from the environment.

    Raises:
        OrthotuneError: an address beside the loopback and no password, a short password, or no signals here.

    Example:
        >>> check_reach("127.0.0.1", None)
    """
    if not has_signals():
        raise OrthotuneError("orthotune studio", got="Windows, where a run cannot be asked to save and stop",
                             needed="Linux or macOS", do="Start it in the Windows Subsystem for Linux")  # fmt: skip
    if password is not None and len(password) < SHORTEST:
        raise OrthotuneError(f"the password in {PASSWORD}", got=f"{len(password)} characters",
                             needed=f"at least {SHORTEST}")  # fmt: skip
    if host not in LOOPBACK and password is None:
        raise OrthotuneError(
            f"--host {host}", got=f"no password in {PASSWORD}",
            needed="a password, as everybody who reaches the page can start runs and read the folders",
            do="Set one, or leave --host out and reach this machine by ssh -L",
        )  # fmt: skip


class Guard:
    """Answers requests only of this machine's names, of the page itself, and with the password if there is one.

    A page of another site that a browser has open beside the studio can neither read it (its name in ``Host`` is
    another one) nor post to it (its ``Origin`` is another one).

    Args:
        app: the application behind it.
        password: None for none.
        loopback: whether only names of this machine are answered.
    """

    def __init__(self, app: Any, password: str | None, loopback: bool) -> None:
        self.app, self.password, self.loopback = app, password, loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        # A connection both ways has no method, and can do what a post can.
        status, more = self._refused(str(scope.get("method", "POST")), headers)
        if not status and _is_closed(str(scope.get("path", ""))):
            status = 403
        if status:
            await send({"type": "http.response.start", "status": status,
                        "headers": [(b"content-type", b"text/plain"), *more]})  # fmt: skip
            await send({"type": "http.response.body", "body": b"Refused.\n"})
            return

        async def guarded(sent: Any) -> None:
            if sent["type"] == "http.response.start":
                given = {name.lower() for name, _ in sent["headers"]}
                added = {"content-security-policy": POLICY, "x-content-type-options": "nosniff",
                         "referrer-policy": "no-referrer", "cross-origin-resource-policy": "same-origin"}  # fmt: skip
                sent["headers"] = [*sent["headers"], *((name.encode(), value.encode()) for name, value in added.items()
                                                       if name.encode() not in given)]  # fmt: skip
            await send(sent)

        await self.app(scope, receive, guarded)

    def _refused(self, method: str, headers: dict[str, str]) -> tuple[int, list[tuple[bytes, bytes]]]:
        """The status of a refusal, 0 for none, and headers of it."""
        host = headers.get("host", "")
        if self.loopback and _split(f"//{host}").hostname not in LOOPBACK:
            return 403, []
        origin = headers.get("origin")
        if origin is not None and method not in ("GET", "HEAD") and _split(origin).netloc != host:
            return 403, []
        if self.password is not None:
            wanted = "Basic " + base64.b64encode(f"{USER}:{self.password}".encode()).decode()
            if not hmac.compare_digest(headers.get("authorization", "").encode(), wanted.encode()):
                return 401, [(b"www-authenticate", b'Basic realm="orthotune studio", charset="UTF-8"')]
        return 0, []


def _split(address: str) -> SplitResult:
    try:
        return urlsplit(address)
    except ValueError:  # a bracket without its other one
        return urlsplit("")


def _is_closed(path: str) -> bool:
    _, api, route = path.partition("/gradio_api/")
    return bool(api) and re.split("[=/]", route, maxsplit=1)[0] in CLOSED


def make_app(folders: Folders, password: str | None = None, loopback: bool = True) -> Any:
    """The application: the page, and the reports of runs.

    Args:
        folders: of the studio.
        password: asked for by the browser; None for none.
        loopback: answer only names of this machine.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import gradio
    from fastapi import FastAPI
    from fastapi.responses import PlainTextResponse, Response

    from orthotune.studio.page import make_page

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/report")
    def report(run: str) -> Response:
        try:
            path = folders.inside(Path(folders.inside(run)) / NAME)
        except OrthotuneError as fault:
            return PlainTextResponse(str(fault), status_code=403)
        if not path.is_file():
            return PlainTextResponse("This run has no report yet.", status_code=404)
        return Response(path.read_bytes(), media_type="text/html; charset=utf-8",
                        headers={"content-security-policy": REPORT_POLICY})  # fmt: skip

    page, looks = make_page(folders)
    app = gradio.mount_gradio_app(
        app, page, path="", footer_links=[], show_error=False, ssr_mode=False, enable_monitoring=False, pwa=False,
        max_file_size=0, run_history=False, **looks,
    )  # fmt: skip
    return Guard(app, password, loopback)


def serve(folders: Folders, host: str, port: int, say: Callable[[str], None]) -> None:
    """Serve the page until a signal ends the server; runs go on without it.

    Args:
        folders: of the studio.
        host: the address to listen on.
        port: the port.
        say: called with the address of the page.

    Raises:
        OrthotuneError: as :func:`check_reach`, or the port is in use.
    """
    import socket

    import uvicorn

    password = os.environ.pop(PASSWORD, None) or None  # the runs that it starts need not know it
    check_reach(host, password)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
        except OSError as fault:
            raise OrthotuneError(
                f"port {port} of {host}", got=(fault.strerror or str(fault)).lower(), do="Choose another one: --port N"
            ) from fault
        app = make_app(folders, password, host in LOOPBACK)
        listening.listen()  # whoever opens the address now waits for the server, and is not refused
        number, shown = listening.getsockname()[1], f"[{host}]" if ":" in host else host
        say(f"http://{shown}:{number}  (Ctrl-C ends the page; runs go on)")
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on"))
        server.run(sockets=[listening])
