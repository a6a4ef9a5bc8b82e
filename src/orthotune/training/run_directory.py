"""A run's directory: refused before any training when it cannot be used; what appears in it appears whole."""

from __future__ import annotations

import json
import math
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from orthotune.errors import OutputError, RecipeError

# Settings that may differ between a run and its continuation without changing what comes out.
FREE_TO_CHANGE = {"resume", "output", "eval_every", "save_every", "save_total_limit"}


class RunDirectory:
    """Where one run writes: settings.json, metrics.jsonl, checkpoints, results.

    Args:
        path: the directory; made when missing.

    Raises:
        OutputError: the directory cannot be made or written to.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.record, self.metrics = self.path / "run.json", self.path / "metrics.jsonl"
        self.settings, self.checkpoints = self.path / "settings.json", self.path / "checkpoints"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / f".write-{uuid.uuid4().hex}"
            probe.touch()
            probe.unlink()
        except OSError as fault:
            raise OutputError(
                f"output {self.path}",
                got=fault.strerror or str(fault),
                needed="a directory that can be written to",
                do="Pass output=PATH",
            ) from fault

    def open(self, settings: dict[str, Any], resume: str) -> Path | None:
        """Check that ``settings`` may be run here; return the checkpoint to go on from, None for a fresh start.

        Raises:
            OutputError: another run lives here and ``resume`` is ``never``.
            RecipeError: the run here was made with other settings, or no such checkpoint.
        """
        before = read_json(self.settings) if self.settings.is_file() else None
        if resume == "never":
            if before is not None or self.record.is_file():
                raise self._taken()
        elif before is not None:
            self._same(before, settings)
        checkpoint = self.newest_checkpoint() if resume == "auto" else None
        if resume not in ("never", "auto"):
            checkpoint = Path(resume)
            if not is_whole(checkpoint):
                raise RecipeError(f"resume={resume}", got="no complete checkpoint there", do="Pass resume=auto")
        return checkpoint

    def claim(self, settings: dict[str, Any]) -> None:
        """Note what is run here; from now on another run is refused."""
        write_json(self.settings, settings)

    def drop_if_empty(self) -> None:
        """Remove the directory when a run failed before it wrote anything."""
        with suppress(OSError):
            self.path.rmdir()

    @property
    def finished(self) -> bool:
        """Whether a run came to its end here."""
        return self.record.is_file()

    def newest_checkpoint(self) -> Path | None:
        """The complete checkpoint with the most steps; one that was cut off in writing is passed over."""
        found = [path for path in self.checkpoints.glob("checkpoint-*") if is_whole(path)]
        return max(found, key=step_of, default=None)

    def _taken(self) -> OutputError:
        if self.finished:
            return OutputError(
                f"output {self.path}",
                got="a finished run",
                do="Pass output=PATH for another one, or resume=auto to keep this one",
            )
        step = self.newest_checkpoint()
        return OutputError(
            f"output {self.path}",
            got=f"an unfinished run{f' with {step.name}' if step else ', without a checkpoint yet'}",
            do="Pass resume=auto to go on with it, or output=PATH for another one",
        )

    def _same(self, before: dict[str, Any], now: dict[str, Any]) -> None:
        keys = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        changed = [key for key in keys if key not in FREE_TO_CHANGE]
        if changed:
            raise RecipeError(
                f"resume in {self.path}",
                got="; ".join(f"{key}={now.get(key)} instead of {before.get(key)}" for key in changed),
                needed="the settings that the run was started with",
                do="Change them back, or pass output=PATH for another run",
            )


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end: the trainer writes its state last."""
    try:
        return isinstance(read_json(checkpoint / "trainer_state.json").get("global_step"), int)
    except (OSError, ValueError):
        return False


def step_of(checkpoint: Path | None) -> int:
    """The step at which a checkpoint was taken; 0 without one."""
    return int(read_json(checkpoint / "trainer_state.json")["global_step"]) if checkpoint else 0


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A temporary sibling to write a file or a directory to; it takes the name ``path`` when all went well.

    Example:
        >>> with appearing(Path("a.txt")) as partial:  # doctest: +SKIP
        ...     partial.write_text("whole or not at all")
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        yield partial
        if path.is_dir():
            shutil.rmtree(path)
        os.replace(partial, path)
    except OSError as fault:
        raise OutputError(f"writing {path}", got=fault.strerror or str(fault)) from fault
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` as an indented JSON file, whole or not at all."""
    with appearing(path) as partial:
        partial.write_text(json.dumps(finite(content), indent=2) + "\n", encoding="utf-8")


def finite(content: Any) -> Any:
    """``content`` with numbers that JSON cannot hold (a loss that diverged) as None."""
    if isinstance(content, dict):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in the file."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
