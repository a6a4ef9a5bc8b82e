"""What the tabs of the page share: the folders, the queue, two computing processes, and the list of runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from orthotune.errors import OrthotuneError
from orthotune.files.run_adapter import IMAGE_RECIPES
from orthotune.studio import pages
from orthotune.studio.facts import Facts, read_facts
from orthotune.studio.folders import Folders
from orthotune.studio.process import Computing
from orthotune.studio.queue import Job, Queue, run_state

Choices = list[tuple[str, str]]


class Workshop:
    """One studio.

    Args:
        folders: that it was started with.

    Attributes:
        queue: of the workspace.
        checks: the process that checks settings.
        models: the process that holds a model; apart, so that a form does not wait for an image.
    """

    def __init__(self, folders: Folders) -> None:
        self.folders, self.queue = folders, Queue(folders)
        self.checks, self.models = Computing(folders.workspace), Computing(folders.workspace)

    def entries(self) -> list[tuple[Path, Job | None, str]]:
        """The runs: those of the queue in its order, newest first, then the others; each with its job and state."""
        jobs: dict[Path, Job] = {}
        for job in sorted(self.queue.jobs(), key=lambda job: -job.number):
            if self._is_inside(job.output):  # in a copied folder an output may be in the original one
                jobs.setdefault(Path(job.output), job)
        found = [(output, job, str(self.queue.state(job))) for output, job in jobs.items()]
        others = [run for run in self.folders.runs() if run not in jobs]
        return found + [(run, None, str(run_state(run))) for run in others]

    def _is_inside(self, path: str) -> bool:
        try:
            return self.folders.inside(path) == Path(path)
        except OrthotuneError:
            return False

    def name(self, run: Path) -> str:
        """What a run is called on the page."""
        return self.folders.shown(run)

    def path(self, chosen: str | None) -> str:
        """The path of a run or adapter that was chosen, without a link that leads outside.

        Args:
            chosen: a path below the folders; None if nothing was chosen.

        Raises:
            OrthotuneError: nothing was chosen, or a place outside the folders.
        """
        if not chosen:
            raise OrthotuneError(
                "no run is chosen", needed="a finished run", do="Wait for the end of one in the tab Run"
            )
        return str(self.folders.tree(chosen))

    def adapters(self) -> Choices:
        """What can be used after training: finished runs, adapters beside them, and checkpoints of stopped runs."""
        found: Choices = []
        for run, _, state in self.entries():
            name = self.name(run)
            if any((run / kept).is_dir() for kept in ("adapter", "model")) and state != "running":
                found.append((name, str(run)))
                if (run / "rewound" / "adapter").is_dir():
                    found.append((f"{name}, rewound", str(run / "rewound" / "adapter")))
            elif state not in ("running", "starting", "stopping"):
                kept = sorted(
                    run.glob("checkpoints/checkpoint-*/adapter_config.json"), key=lambda path: path.stat().st_mtime
                )
                found += [(f"{name}, {kept[-1].parent.name}", str(kept[-1].parent))] if kept else []
        places = ("adapters/*/*.safetensors", "adapters/*/adapter/*.safetensors")  # the latter of image models
        made = sorted({path.parent for place in places for path in self.folders.workspace.glob(place)})
        return found + [(self.name(path), str(path)) for path in made]

    def facts(self, run: str | Path) -> Facts:
        """What a run directory says of itself; of a checkpoint, what its run says.

        Args:
            run: a path below the folders.
        """
        path = self.folders.inside(run)
        around = [part for part in path.parents if any(part.is_relative_to(root) for root in self.folders.roots)]
        inner = next((part for part in (path, *around) if (part / "settings.json").is_file()), path)
        return read_facts(inner)

    def makes_images(self, run: str | Path) -> bool:
        """Whether a run is one of an image model."""
        return self.facts(run).recipe in IMAGE_RECIPES


def with_message(action: Callable[..., str]) -> Callable[..., str]:
    """The action, whose error is a message on the page in the place of its result.

    Args:
        action: gives a fragment of HTML.
    """

    @wraps(action)
    def shown(*arguments: Any) -> str:
        try:
            return action(*arguments)
        except (OrthotuneError, OSError) as fault:
            return pages.message(str(fault), "wrong")

    return shown
