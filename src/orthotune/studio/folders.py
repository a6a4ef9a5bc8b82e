"""The folders that the studio was started with: nothing outside them is read or written."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from orthotune.errors import OrthotuneError
from orthotune.files.names import escaped
from orthotune.files.run_adapter import FINISHED, STARTED

#: Folders below a root in which runs are looked for, and the most runs that are listed.
DEPTH, MOST = 4, 500


class Folders:
    """The roots of the studio. The first one is the workspace: relative paths begin there, and runs are written there.

    Args:
        roots: existing folders.

    Raises:
        OrthotuneError: one of them is no folder, or there is none.

    Example:
        >>> import tempfile
        >>> root = Path(tempfile.mkdtemp()).resolve()
        >>> Folders([root]).inside("photos") == root / "photos"
        True
    """

    def __init__(self, roots: Sequence[Path]) -> None:
        for root in roots:
            if not root.is_dir():
                raise OrthotuneError(
                    f"folder {root}", got="a file" if root.exists() else "nothing there", needed="an existing folder",
                    do=None if root.exists() else f"Make it first: mkdir {root}",
                )  # fmt: skip
        if not roots:
            raise OrthotuneError("no folder", needed="at least one, in which runs are written")
        self.roots = tuple(root.resolve() for root in roots)

    @property
    def workspace(self) -> Path:
        """The folder in which runs are written."""
        return self.roots[0]

    def inside(self, given: str | Path) -> Path:
        """The path that a user named, resolved; links that lead outside are followed and refused.

        Args:
            given: absolute, or relative to the workspace.

        Raises:
            OrthotuneError: the path is not below a folder of the studio.
        """
        try:
            path = (self.workspace / Path(str(given)).expanduser()).resolve()
        except (OSError, ValueError, RuntimeError) as fault:  # a null byte, a loop of links, an unknown user
            raise OrthotuneError(f"path {escaped([str(given)])}", got=str(fault)) from fault
        if not any(path.is_relative_to(root) for root in self.roots):
            raise OrthotuneError(
                f"path {escaped([str(given)])}",
                got="a place outside the folders of this studio",
                needed=f"a path below {', '.join(map(str, self.roots))}",
                do="Start orthotune studio with that folder, too",
            )
        return path

    def tree(self, given: str | Path) -> Path:
        """As :meth:`inside`, with all that lies below the path.

        Args:
            given: absolute, or relative to the workspace.

        Raises:
            OrthotuneError: the path, or a link below it, leads outside.
        """
        path = self.inside(given)
        for below in path.rglob("*"):
            if below.is_symlink():
                self.inside(below)
        return path

    def shown(self, path: Path) -> str:
        """A path as the studio names it: relative to the workspace where it lies there."""
        return path.relative_to(self.workspace).as_posix() if path.is_relative_to(self.workspace) else str(path)

    def check(self, settings: Mapping[str, Any]) -> None:
        """Refuse settings that name a path outside.

        A text is taken for a path if it begins like one or if something of that name, or of that pattern, exists; other
        texts are names on the hub, words for built-in models, or prompts.

        Args:
            settings: as a recipe file has them.

        Raises:
            OrthotuneError: names the setting and the path.
        """
        for key, text in _texts(settings):
            try:
                for path in _paths_of(text, self.workspace):
                    self.inside(path)
            except OrthotuneError as fault:
                raise OrthotuneError(f"{key}: {fault.given}", got=fault.got, needed=fault.needed, do=fault.do) from None

    def runs(self) -> list[Path]:
        """The run directories below the roots, the one that changed last first."""
        found: dict[Path, float] = {}
        for root in self.roots:
            for folder in _below(root, DEPTH):
                with suppress(OSError):  # removed meanwhile
                    marks = [folder / name for name in (STARTED, FINISHED) if (folder / name).is_file()]
                    if marks:
                        found[folder] = max(mark.stat().st_mtime for mark in marks)
        return sorted(found, key=lambda folder: (-found[folder], str(folder)))[:MOST]


def _below(folder: Path, depth: int) -> Iterator[Path]:
    yield folder
    if depth == 0:
        return
    try:
        inner = sorted(entry.path for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False))
    except OSError:
        return
    for path in map(Path, inner):
        if (
            _is_utf8(path.name)
            and not path.name.startswith(".")
            and path.name not in ("checkpoints", "samples", "node_modules")
        ):
            yield from _below(path, depth - 1)


def _is_utf8(name: str) -> bool:
    """Whether a name can be sent to a browser."""
    try:
        return bool(name.encode())
    except UnicodeEncodeError:  # bytes of another encoding
        return False


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            if key:  # a table from paths to weights
                yield key, str(name)
            yield from _texts(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner, key)


def _paths_of(text: str, workspace: Path) -> Iterable[str]:
    """The paths that a setting names: itself, or the files that match it as a pattern."""
    if _names_a_path(text, workspace):
        return [text]
    return glob.iglob(text, root_dir=workspace, recursive=True) if glob.has_magic(text) and "\0" not in text else []


def _names_a_path(text: str, workspace: Path) -> bool:
    place = text.partition(":")[0] if not text.startswith(("/", "~", ".")) else text
    if text.startswith(("/", "~")) or "\\" in text or ".." in Path(text.replace("\0", "")).parts:
        return True
    try:
        return os.path.lexists(workspace / text) or os.path.lexists(workspace / place)
    except (OSError, ValueError):
        return "\0" in text
