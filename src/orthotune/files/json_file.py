"""JSON files: the only reader, whose errors name file and line, and the only writer."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orthotune.errors import DataError, OrthotuneError
from orthotune.files.atomic import Location, write_text

_KINDS: dict[type, str] = {dict: "object", list: "list", str: "text", bool: "truth value", type(None): "null"}


def read_json(
    path: Location, *, named: str = "", error: type[OrthotuneError] = DataError, needed: str = "", do: str = ""
) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        path: the file.
        named: kind of the file, for messages ("manifest"); written before the path.
        error: class of the error that is raised.
        needed: expected content of the file, for messages; "a JSON object" if empty.
        do: advice for the user, for messages.

    Raises:
        OrthotuneError: of the class ``error``: the file does not exist, cannot be read, or holds no JSON object. The
            message names the file, and the line if known.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "a.json")
        >>> write_json(path, {"steps": 4})
        >>> read_json(path)
        {'steps': 4}
    """
    source = _Source(Path(path), named, error, needed or "a JSON object", do)
    value: dict[str, Any] = source.value(source.text(), dict)
    return value


def read_json_list(
    path: Location, *, named: str = "", error: type[OrthotuneError] = DataError, needed: str = "", do: str = ""
) -> list[Any]:
    """The JSON list in a file.

    Args:
        path: the file.
        named: as for :func:`read_json`.
        error: as for :func:`read_json`.
        needed: as for :func:`read_json`; "a JSON list" if empty.
        do: as for :func:`read_json`.

    Raises:
        OrthotuneError: of the class ``error``, as :func:`read_json`.
    """
    source = _Source(Path(path), named, error, needed or "a JSON list", do)
    value: list[Any] = source.value(source.text(), list)
    return value


def read_json_lines(
    path: Location, *, named: str = "", error: type[OrthotuneError] = DataError, needed: str = "", do: str = ""
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSON Lines file; empty lines are skipped.

    Args:
        path: the file.
        named: as for :func:`read_json`.
        error: as for :func:`read_json`.
        needed: as for :func:`read_json`; "a JSON object in each line" if empty.
        do: as for :func:`read_json`.

    Yields:
        The number of the line, from 1, and its object.

    Raises:
        OrthotuneError: of the class ``error``, as :func:`read_json`; the message names the file and the line.
    """
    source = _Source(Path(path), named, error, needed or "a JSON object in each line", do)
    with source.reading(), source.path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield number, source.value(line, dict, number)


def complete_json_lines(path: Location) -> list[dict[str, Any]]:
    """The JSON objects in a log, up to the first incomplete line, which a killed process leaves.

    Args:
        path: the log; it need not exist.

    Example:
        >>> complete_json_lines("no/such/file.jsonl")
        []
    """
    lines: list[dict[str, Any]] = []
    try:
        for _, line in read_json_lines(path):
            lines.append(line)
    except DataError:
        pass
    return lines


def json_object(text: str) -> dict[str, Any]:
    """The JSON object in a text, such as a value in a header.

    Args:
        text: the text.

    Raises:
        ValueError: the text is not a JSON object.

    Example:
        >>> json_object('{"a": 1}')
        {'a': 1}
    """
    value = json_value(text)
    if not isinstance(value, dict):
        raise ValueError(f"a JSON {_kind(value)}")
    return value


def json_value(text: str) -> Any:
    """The JSON value in a text, such as a list in a column of a table.

    Args:
        text: the text.

    Raises:
        ValueError: the text is not JSON.

    Example:
        >>> json_value("[1, 2]")
        [1, 2]
    """
    try:
        return json.loads(text)
    except RecursionError as fault:
        raise ValueError("JSON that is nested too deep") from fault


def write_json(
    path: Location, content: Any, *, sort_keys: bool = False, ascii_only: bool = True, nan_as_null: bool = True
) -> None:
    """Write a value as an indented JSON file, atomically.

    Args:
        path: the file; an existing file is replaced.
        content: dictionaries, lists, text, numbers.
        sort_keys: write keys in alphabetical order.
        ascii_only: write other characters as escape sequences, which any reader understands; False for files that
            people read.
        nan_as_null: write NaN and infinity, which JSON does not have, as null; False writes ``NaN`` and ``Infinity``,
            as Python does, for configs of other programs that use them.

    Raises:
        OutputError: the file cannot be written.
    """
    content = finite(content) if nan_as_null else content
    text = json.dumps(content, indent=2, sort_keys=sort_keys, ensure_ascii=ascii_only)
    write_text(path, text + "\n")


def json_line(content: dict[str, Any]) -> str:
    """One line of a JSON Lines file, with its end; NaN and infinity become null.

    Example:
        >>> json_line({"loss": float("nan")})
        '{"loss": null}\\n'
    """
    return json.dumps(finite(content)) + "\n"


def finite(content: Any) -> Any:
    """``content`` with NaN and infinity, which JSON does not have, replaced by None.

    Example:
        >>> finite({"loss": [1.5, float("inf")]})
        {'loss': [1.5, None]}
    """
    if isinstance(content, dict):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


@dataclass(frozen=True)
class _Source:
    """A file to read, with the parts of its error messages."""

    path: Path
    named: str
    error: type[OrthotuneError]
    needed: str
    do: str

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Context manager that raises ``error`` for a file that cannot be read."""
        try:
            yield
        except UnicodeDecodeError as fault:
            got = f"bytes that are not UTF-8 at position {fault.start}"
            raise self._error(got) from fault
        except FileNotFoundError as fault:
            raise self._error("no such file") from fault
        except OSError as fault:
            raise self._error("a folder" if self.path.is_dir() else fault.strerror or str(fault)) from fault

    def text(self) -> str:
        with self.reading():
            return self.path.read_text(encoding="utf-8")

    def value(self, text: str, kind: type, line: int | None = None) -> Any:
        """The JSON value in ``text``, which is the content of the file or of its line ``line``."""
        try:
            value = json.loads(text)
        except json.JSONDecodeError as fault:
            if not text.strip():
                raise self._error("an empty file") from fault
            position = f", line {line or fault.lineno}: not JSON"
            raise self._error(f"{fault.msg} at column {fault.colno}{_at_the_end(text, fault)}", position) from fault
        except (ValueError, RecursionError) as fault:  # ValueError: a number with more digits than Python reads
            got = "JSON that is nested too deep" if isinstance(fault, RecursionError) else str(fault)
            raise self._error(got, f", line {line}" if line else "") from fault
        if not isinstance(value, kind):
            raise self._error(f"a JSON {_kind(value)}", f", line {line}" if line else "")
        return value

    def _error(self, got: str, position: str = "") -> OrthotuneError:
        given = f"{self.named} {self.path}{position}".lstrip()
        return self.error(given, got=got, needed=self.needed, do=self.do or None)


def _at_the_end(text: str, fault: json.JSONDecodeError) -> str:
    """Words for JSON that ends in the middle of a value, as a download or a copy that was cut off leaves it."""
    ends = fault.pos >= len(text.rstrip()) or fault.msg.startswith("Unterminated string")
    return ": the text ends in the middle of a value" if ends else ""


def _kind(value: object) -> str:
    return _KINDS.get(type(value), "number")
