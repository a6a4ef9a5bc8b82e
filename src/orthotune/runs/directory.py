"""A run's directory: refused before any training when it cannot be used; what appears in it is complete."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from orthotune.errors import OutputError, RecipeError
from orthotune.files.atomic import sweep
from orthotune.files.json_file import read_json, write_json
from orthotune.files.run_adapter import LOCK, STOPPED
from orthotune.runs import checkpoint_folder
from orthotune.runs.checkpoint_manifest import MANIFEST, check, read_manifest
from orthotune.runs.lock import RunLock

# Settings that may differ between a run and its continuation without changing what comes out.
FREE_TO_CHANGE = {
    "resume", "output", "eval_every", "save_every", "save_total_limit", "max_skipped", "on_failed_save",
    "unmatched_targets",
    "trackers", "sample_prompts", "sample_seeds", "sample_every", "sample_steps", "guidance", "keep_every",
}  # fmt: skip


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
        self.stopped = self.path / STOPPED
        self._lock = RunLock(self.path / LOCK)
        self._longer = False
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

    def open(
        self,
        settings: dict[str, Any],
        resume: str,
        say: Callable[[str], None] | None = None,
        growing: Sequence[str] = (),
    ) -> Path | None:
        """Check that ``settings`` may be run here; return the checkpoint to go on from, None for a fresh start.

        From then on no other process can open it, until :meth:`drop_if_empty`; a finished run is not locked. Of a
        launch of several processes one opens it. Settings in ``growing`` may be larger than those of a run that is
        resumed, even of a finished one, which is then continued. ``say`` is called with a message for damaged
        checkpoints, which are therefore passed over, and about a file system without locks.

        Raises:
            OutputError: another run lives here and ``resume`` is ``never``, or is going on in another process.
            RecipeError: the run here was made with other settings, or no such checkpoint, or it is damaged.
        """
        self._lock.take(say)
        try:
            checkpoint = self._checked(settings, resume, say, growing)
        except BaseException:
            self._lock.release()
            raise
        if self.finished:
            self._lock.release()
        return checkpoint

    def _checked(
        self, settings: dict[str, Any], resume: str, say: Callable[[str], None] | None, growing: Sequence[str]
    ) -> Path | None:
        before = read_json(self.settings) if self.settings.is_file() else None
        if resume == "never":
            if before is not None or self.record.is_file():
                raise self._taken()
        elif before is not None:
            self._same(before, settings, growing)
            self._longer = self._is_longer(settings, growing)
        if self._longer and (self.path / "rewound").exists():
            raise OutputError(
                f"{self.path / 'rewound'}", got="what was rewound of the shorter run",
                do="Move it away, then go on with the same command",
            )  # fmt: skip
        if resume == "auto":
            found = self.newest_checkpoint(say)
            if self._longer and found is None:
                raise OutputError(
                    f"resume in {self.path}", got="a finished run without a checkpoint, which cannot be made longer",
                    do="Begin another run that trains its adapter further: adapter=RUN output=PATH",
                )  # fmt: skip
            return found
        return None if resume == "never" else _given(Path(resume))

    @contextmanager
    def locked(self, say: Callable[[str], None] | None = None) -> Iterator[None]:
        """No other process can open the directory within the block, not even a finished run's.

        Raises:
            OutputError: another process has it.
        """
        self._lock.take(say)
        try:
            yield
        finally:
            self._lock.release()

    def claim(self, settings: dict[str, Any]) -> None:
        """Note what is run here, and remove what a killed process left half-written; another run is refused now."""
        if self._longer and self.record.is_file():
            # Until the longer run is finished, nothing may take the record for that of these settings.
            steps = read_json(self.record).get("steps")
            self.record.replace(self.path / f"run-{steps}.json")
        self.stopped.unlink(missing_ok=True)
        sweep(self.path)
        checkpoint_folder.sweep(self.checkpoints)
        write_json(self.settings, settings)

    def drop_if_empty(self) -> None:
        """Let others open the directory again; remove it when the run failed before it wrote anything."""
        self._lock.release()
        with suppress(OSError):
            self.checkpoints.rmdir()  # a trainer makes it when it is made itself
        with suppress(OSError):
            self.path.rmdir()

    @property
    def finished(self) -> bool:
        """Whether a run came to its end here, and is not to be continued with more steps."""
        return self.record.is_file() and not self._longer

    def newest_checkpoint(self, say: Callable[[str], None] | None = None) -> Path | None:
        """The newest checkpoint that is intact; ``say`` gets a message for each newer one that is damaged."""
        return checkpoint_folder.newest(self.checkpoints, say)

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

    def _is_longer(self, now: dict[str, Any], growing: Sequence[str]) -> bool:
        """Whether a finished run here has fewer steps or epochs than ``now``."""
        if not self.record.is_file():
            return False
        finished = read_json(self.record).get("settings") or {}
        return any(_number(now.get(key)) > _number(finished.get(key)) > 0 for key in growing)

    def _same(self, before: dict[str, Any], now: dict[str, Any], growing: Sequence[str] = ()) -> None:
        if before.get("recipe", now.get("recipe")) != now.get("recipe"):
            raise another_recipe(self.path, before["recipe"], now.get("recipe"))
        keys = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        changed = [key for key in keys if key not in FREE_TO_CHANGE and key != "recipe"]
        changed = [key for key in changed
                   if key not in growing or not _number(now.get(key)) > _number(before.get(key)) > 0]  # fmt: skip
        if changed:
            lowered = [key for key in changed if key in growing and _number(now.get(key)) and _number(before.get(key))]
            raise RecipeError(
                f"resume in {self.path}",
                got="; ".join(f"{key}={now.get(key)} instead of {before.get(key)}" for key in changed),
                needed="the settings that the run was started with"
                + (f"; {lowered[0]} may be raised, not lowered" if lowered else ""),
                do="Change them back, or pass output=PATH for another run",
            )


def another_recipe(path: Path, there: Any, asked: Any) -> RecipeError:
    """The error for a run directory that another job began.

    Args:
        path: the directory.
        there: the recipe of the run in it.
        asked: the recipe that is to go on.
    """
    return RecipeError(
        f"resume in {path}", got=f"a run of `orthotune train {there}`", needed=f"a run of `orthotune train {asked}`",
        do=f"Use orthotune train {there}, or pass output=PATH for another run",
    )  # fmt: skip


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0.0


def step_of(checkpoint: Path | None) -> int:
    """The step at which a checkpoint was taken; 0 without one."""
    if checkpoint is None:
        return 0
    complete = (checkpoint / MANIFEST).is_file()
    return int(read_manifest(checkpoint)["step"]) if complete else checkpoint_folder.trainer_step(checkpoint)


def _given(checkpoint: Path) -> Path:
    """A checkpoint that was named, if it may be gone on from."""
    given, do = f"resume={checkpoint}", "Pass resume=auto, which takes the newest complete checkpoint"
    if not (checkpoint / MANIFEST).is_file():
        if not checkpoint_folder.state_is_complete(checkpoint):
            raise RecipeError(given, got="no complete checkpoint there", do=do)
        return checkpoint
    try:
        check(checkpoint)
    except OutputError as fault:
        raise RecipeError(given, got=fault.got, do=do) from fault
    return checkpoint
