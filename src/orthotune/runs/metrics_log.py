"""The lines of metrics.jsonl: one JSON object per step at which something was measured."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orthotune.errors import OutputError
from orthotune.files.atomic import write_bytes
from orthotune.files.failed_write import reason
from orthotune.files.json_file import complete_json_lines, finite, json_line
from orthotune.runs.failed_save import OnFailedSave

Line = dict[str, Any]
#: The loss of a domain, and the name of its change since step 0: what is gained or forgotten is positive.
CHANGES = {"new_nats": "gain", "old_nats": "forgetting"}
#: Before the name of a score, where it was measured on data of the source domain.
OLD = "old_"


@dataclass(frozen=True)
class Score:
    """The score by which a run that measures no losses of domains gains and forgets.

    Args:
        name: key of the score in the lines of metrics; ``old_NAME`` is the same score on data of the source domain.
        higher_is_better: False for errors, as the word error rate.

    Example:
        >>> Score("accuracy").changes({"accuracy": 0.5, "old_accuracy": 0.75}, {"accuracy": 0.75, "old_accuracy": 0.5})
        {'gain': 0.25, 'forgetting': 0.25}
    """

    name: str
    higher_is_better: bool = True

    def changes(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, float]:
        """``gain`` and ``forgetting`` between two measurements, in units of the score: each one that both have.

        Args:
            before: the scores at the first measurement, by name.
            now: those of a later one.
        """
        sign = 1.0 if self.higher_is_better else -1.0
        signs = {self.name: ("gain", sign), OLD + self.name: ("forgetting", -sign)}
        return {
            change: factor * (now[key] - before[key])
            for key, (change, factor) in signs.items()
            if before.get(key) is not None and now.get(key) is not None
        }


class MetricsLog:
    """Appends lines to a file; a resumed run first drops what lies beyond its checkpoint.

    A line has ``step``, ``seconds`` (since the start of training, interruptions skipped) and, where measured,
    ``train_loss``, ``learning_rate``, ``gradient_norm`` (before clipping), ``new_nats`` and ``old_nats`` (nats per
    token), ``gain`` and ``forgetting`` (the changes of these two since step 0), and ``diagnosis``.

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

    def last(self, key: str, until: int | None = None) -> Any:
        """The newest value of ``key``, or None; with ``until``, the newest one up to that step."""
        lines = self.lines if until is None else [line for line in self.lines if line["step"] <= until]
        return next((line[key] for line in reversed(lines) if line.get(key) is not None), None)

    def first(self, key: str) -> Any:
        """The oldest value of ``key``, or None."""
        return next((line[key] for line in self.lines if line.get(key) is not None), None)

    def outcome(self, until: int | None = None) -> dict[str, Any]:
        """The loss of each domain before and after, what was gained on the target and forgotten of the source domain.

        Args:
            until: the last step that counts; None for all.
        """
        before = {key: self.first(key) for key in CHANGES}
        after = {key: self.last(key, until) for key in CHANGES}
        ends = {key.replace("nats", "before"): value for key, value in before.items()}
        ends |= {key.replace("nats", "after"): value for key, value in after.items()}
        return {**ends, **dict.fromkeys(CHANGES.values()), **changes(before, after)}


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, float]:
    """What was gained on the target domain and forgotten of the source domain between two measurements.

    Args:
        before: a line of metrics with the losses ``new_nats`` and ``old_nats``, in nats per token, as far as measured.
        now: a later line.

    Returns:
        ``gain`` and ``forgetting``, in nats per token: each one whose loss both lines have.

    Example:
        >>> changes({"new_nats": 3.0, "old_nats": 2.0}, {"new_nats": 2.5, "old_nats": 2.25})
        {'gain': 0.5, 'forgetting': 0.25}
    """
    both = [key for key in CHANGES if before.get(key) is not None and now.get(key) is not None]
    return {CHANGES[key]: before[key] - now[key] if key == "new_nats" else now[key] - before[key] for key in both}


def measurements(lines: Sequence[Line]) -> list[Line]:
    """The lines with a loss of the target or the source domain, each with its ``gain`` and ``forgetting``.

    Lines of runs that gain by a :class:`Score` have the two changes themselves.

    Lines that were written before these two keys existed get them, too.

    Example:
        >>> measurements([{"step": 0, "new_nats": 3.0}, {"step": 1}, {"step": 2, "new_nats": 2.5}])[1]
        {'gain': 0.5, 'step': 2, 'new_nats': 2.5}
    """
    before: Line = {}
    found: list[Line] = []
    for line in lines:
        measured = {key: line[key] for key in CHANGES if key in line}
        if measured or line.keys() & set(CHANGES.values()):
            before = {key: value for key, value in measured.items() if value is not None} | before
            found.append({**changes(before, line), **line})
    return found


def net_gain(line: Mapping[str, Any]) -> float | None:
    """Gain - forgetting of a measurement, in nats per token; the gain alone where no source domain is measured.

    Returns:
        The difference; None where the gain is not known, or a value is not finite.

    Example:
        >>> net_gain({"gain": 0.5, "forgetting": 0.125})
        0.375
    """
    values = line.get("gain"), line.get("forgetting", 0.0)
    gain, forgetting = (value if value is not None and math.isfinite(value) else None for value in values)
    return None if gain is None or forgetting is None else gain - forgetting


def _text(line: Line) -> bytes:
    return json_line(line).encode()


def read_lines(path: Path) -> list[Line]:
    """The lines of the file; a last line that was cut off in writing is skipped."""
    return complete_json_lines(path)
