"""The lines of metrics.jsonl: one JSON object per step at which something was measured."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from orthotune.errors import OutputError
from orthotune.files.atomic import write_bytes
from orthotune.files.failed_write import reason
from orthotune.files.json_file import complete_json_lines, finite, json_line
from orthotune.runs.failed_save import OnFailedSave

Line = dict[str, Any]


class MetricsLog:
    """Appends lines to a file; a resumed run first drops what lies beyond its checkpoint.

    A line has ``step``, ``seconds`` (since the start of training, interruptions skipped) and, where measured,
    ``train_loss``, ``learning_rate``, ``gradient_norm`` (before clipping), ``new_nats`` and ``old_nats`` (nats per
    token), and ``diagnosis``.

    A line that cannot be written, for example on a full disk, is an error or is kept until there is room; the file
    always holds complete lines.

    Args:
        path: the file; None keeps the lines in memory, for processes beside the main one.
        from_step: the last step whose line is kept.
        on_failed_save: ``stop`` or ``go-on``, as of a checkpoint that cannot be written.
        say: called once with a message if lines cannot be written and the run goes on.

    Raises:
        OutputError: the file cannot be written and ``on_failed_save`` is ``stop``; from ``append``, too.
    """

    def __init__(
        self,
        path: Path | None,
        from_step: int = 0,
        on_failed_save: OnFailedSave = "stop",
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.path, self.on_failed_save, self.say = path, on_failed_save, say
        self._unwritten: list[bytes] = []
        self._reported = False
        self._attached: Line = {}
        self.lines: list[Line] = []
        if path is None:
            return
        self.lines = [line for line in read_lines(path) if line["step"] <= from_step] if from_step else []
        write_bytes(path, b"".join(map(_text, self.lines)))
        self._bytes = path.stat().st_size

    def attach(self, step: int, values: Line) -> None:
        """Add ``values`` to the line of ``step`` when it comes; they get a line of their own if it does not."""
        if self._attached.get("step") != step:
            self.flush()
        self._attached = {**self._attached, "step": step, **values}

    def flush(self) -> None:
        """Write what was attached to a line that has not come, and what there was no room for."""
        if self._attached:
            self.append(self._attached)
        if self._unwritten and self.path is not None:
            self._write(self.path)

    def append(self, line: Line) -> None:
        """Add one line to the file, flushed so that others can follow the run."""
        attached, self._attached = self._attached, {}
        if attached and attached["step"] != line["step"]:
            self.append(attached)
        # The same lines in memory as in the file, which has no NaN.
        line = finite(attached | line if attached.get("step") == line["step"] else line)
        self.lines.append(line)
        if self.path is not None:
            self._unwritten.append(_text(line))
            self._write(self.path)

    def _write(self, path: Path) -> None:
        text = b"".join(self._unwritten)
        try:
            with path.open("ab") as file:
                file.write(text)
        except OSError as fault:
            with suppress(OSError):  # what was written of it would be half a line
                os.truncate(path, min(self._bytes, path.stat().st_size))
            error = OutputError(f"writing {path}", got=reason(fault), do="Free some space and go on with resume=auto")
            if self.on_failed_save == "stop":
                raise error from fault
            if self.say is not None and not self._reported:
                self.say(f"{error} Its lines are kept until there is room (on_failed_save=go-on).")
            self._reported = True
        else:
            self._bytes, self._unwritten = self._bytes + len(text), []

    def last(self, key: str) -> Any:
        """The newest value of ``key``, or None."""
        return next((line[key] for line in reversed(self.lines) if line.get(key) is not None), None)

    def first(self, key: str) -> Any:
        """The oldest value of ``key``, or None."""
        return next((line[key] for line in self.lines if line.get(key) is not None), None)

    def outcome(self) -> dict[str, Any]:
        """The loss of each domain before and after, what was gained on the new and forgotten of the old one."""
        found: dict[str, Any] = {}
        for domain, change, sign in (("new", "gain", -1), ("old", "forgetting", 1)):
            before, after = self.first(f"{domain}_nats"), self.last(f"{domain}_nats")
            known = before is not None and after is not None
            found |= {f"{domain}_before": before, f"{domain}_after": after}
            found[change] = sign * (after - before) if known else None
        return found


def _text(line: Line) -> bytes:
    return json_line(line).encode()


def read_lines(path: Path) -> list[Line]:
    """The lines of the file; a last line that was cut off in writing is skipped."""
    return complete_json_lines(path)
