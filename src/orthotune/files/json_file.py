"""JSON files: the one reader, which gives an object or an error that names file and line, and the one writer."""

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
        named: what kind of file it is, for messages ("manifest"); put before the path.
        error: the class of the error that is raised.
        needed: what should be in the file, for messages; "a JSON object" if empty.
        do: what the user can do, for messages.

    Raises:
        OrthotuneError: of the class ``error``. There is no such file, it cannot be read, or holds no JSON object;
            names the file, and the line where there is one.

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
    """The JSON list in a file; arguments and errors as those of :func:`read_json`.

    Raises:
        OrthotuneError: of the class ``error``, as :func:`read_json`.
    """
    source = _Source(Path(path), named, error, needed or "a JSON list", do)
    value: list[Any] = source.value(source.text(), list)
    return value


def read_json_lines(
    path: Location, *, named: str = "", error: type[OrthotuneError] = DataError, needed: str = "", do: str = ""
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each line's number, from 1, and its JSON object; empty lines are passed over.

    Arguments as those of :func:`read_json`.

    Raises:
        OrthotuneError: of the class ``error``, as :func:`read_json`; names the file and the line.
    """
    source = _Source(Path(path), named, error, needed or "a JSON object in each line", do)
    with source.reading(), source.path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield number, source.value(line, dict, number)


def complete_json_lines(path: Location) -> list[dict[str, Any]]:
    """The JSON objects in the lines of a log, up to the first line that is not complete: a process was killed there.

    Args:
        path: the file; no file, no lines.

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
    """The JSON object in a text that is no file, such as a value in a header.

    Args:
        text: the text.

    Raises:
        ValueError: there is none.

    Example:
        >>> json_object('{"a": 1}')
        {'a': 1}
    """
    try:
        value = json.loads(text)
    except RecursionError as fault:
        raise ValueError("JSON that is nested too deep") from fault
    if not isinstance(value, dict):
        raise ValueError(f"a JSON {_kind(value)}")
    return value


def write_json(
    path: Location, content: Any, *, sort_keys: bool = False, ascii_only: bool = True, nan_as_null: bool = True
) -> None:
    """Write a value as an indented JSON file, complete or not at all.

    Args:
        path: the file; what is there is replaced.
        content: dictionaries, lists, text, numbers.
        sort_keys: keys in alphabetical order.
        ascii_only: other letters as escape sequences, which any reader understands; for files that people read, pass
            False.
        nan_as_null: numbers that JSON does not have (NaN, infinity) become null. False writes them as Python reads
            them, for configs of other programs, in which they are values.

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
    """``content`` with numbers that JSON does not have (NaN, infinity: a loss that diverged) as None.

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
    """A file that is read, with what its errors say."""

    path: Path
    named: str
    error: type[OrthotuneError]
    needed: str
    do: str

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Within it, a file that cannot be read is an error in words."""
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
        """The JSON value in ``text``, the file's or that of its line ``line``."""
        try:
            value = json.loads(text)
        except json.JSONDecodeError as fault:
            if not text.strip():
                raise self._error("an empty file") from fault
            place = f", line {line or fault.lineno}: not JSON"
            raise self._error(f"{fault.msg} at column {fault.colno}", place) from fault
        except (ValueError, RecursionError) as fault:  # a number of more digits than Python reads, too
            got = "JSON that is nested too deep" if isinstance(fault, RecursionError) else str(fault)
            raise self._error(got, f", line {line}" if line else "") from fault
        if not isinstance(value, kind):
            raise self._error(f"a JSON {_kind(value)}", f", line {line}" if line else "")
        return value

    def _error(self, got: str, place: str = "") -> OrthotuneError:
        said = f"{self.named} {self.path}{place}".lstrip()
        return self.error(said, got=got, needed=self.needed, do=self.do or None)


def _kind(value: object) -> str:
    return _KINDS.get(type(value), "number")
