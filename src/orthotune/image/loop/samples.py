"""Samples during training, always from the same prompts and noise, to show the effect of the training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from orthotune.files.atomic import atomic_write, sweep
from orthotune.files.json_file import read_json_list, write_json
from orthotune.image.data.clips import write_clip
from orthotune.image.loop.trainee import Trainee
from orthotune.metrics.contact_sheet import cell_for_screen, draw_sheet
from orthotune.runs.metrics_log import MetricsLog

#: Prompts and seeds, in equal numbers, to images uint8 ``[n, 3, H, W]`` or clips ``[n, 3, frames, H, W]``.
Sampler = Callable[[Sequence[str], Sequence[int]], Tensor]
FOLDER, LIST = "samples", "samples.json"


class Samples:
    """Generates an image for each prompt and seed and writes the images into a run directory.

    ``samples/step-000100.png`` has a row per prompt and a column per seed, ``samples/step-000100/`` holds the single
    images, and ``samples.json`` a list of ``{"step", "prompt", "seed", "file", "grid"}`` with paths relative to the
    folder. Of a clip, these are its first frame; ``clip`` in the list is an animation of all frames beside it, and
    ``frames`` their number. Writing a step again replaces its entries and removes those of later steps, which a
    resumed run generates again.

    Args:
        folder: of the run.
        prompts: the prompts; without prompts nothing is generated.
        seeds: of the noise.
        sampler: generates the images.
        writes: whether this process writes. The others only take part in generation, as sharded models require.
        chunk: images that the sampler is asked for at once; None asks for all.
        show: called with the number of finished images and of all of them.
        frame_rate: of clips, frames in a second.
    """

    def __init__(
        self, folder: Path, prompts: Sequence[str], seeds: Sequence[int], sampler: Sampler, writes: bool = True,
        chunk: int | None = None, show: Callable[[int, int], None] | None = None, frame_rate: int = 24,
    ) -> None:  # fmt: skip
        self.folder, self.prompts, self.seeds = folder, list(prompts), list(seeds)
        self.sampler, self.writes, self.chunk, self.show = sampler, writes, chunk, show
        self.frame_rate = frame_rate

    def __call__(self, step: int, trainee: Trainee, log: MetricsLog) -> None:
        """Generate and write the images of ``step``; called by the loop."""
        if not self.prompts:
            return
        pairs = [(prompt, seed) for prompt in self.prompts for seed in self.seeds]
        images: list[Tensor] = []
        for start in range(0, len(pairs), self.chunk or len(pairs)):
            if self.show is not None:
                self.show(start, len(pairs))
            part = pairs[start : start + (self.chunk or len(pairs))]
            images += self.sampler([prompt for prompt, _ in part], [seed for _, seed in part]).cpu()
        if self.writes:
            self._write(step, pairs, [image.movedim(0, -1).numpy() for image in images])

    def _write(self, step: int, pairs: list[tuple[str, int]], found: list[Any]) -> None:
        from PIL import Image

        folder, name = self.folder / FOLDER, f"step-{step:06d}"
        sweep(folder)
        images = [one[0] if one.ndim == 4 else one for one in found]
        clips: dict[int, dict[str, Any]] = {}
        with atomic_write(folder / name) as partial:
            partial.mkdir()
            for number, image in enumerate(images):
                Image.fromarray(image).save(partial / f"{number:02d}.png", format="PNG")
                if found[number].ndim == 4:
                    clip = write_clip(found[number], partial / f"{number:02d}", self.frame_rate).name
                    clips[number] = {"clip": f"{FOLDER}/{name}/{clip}", "frames": len(found[number])}
        rows = list(zip(self.prompts, _parts(images, len(self.seeds)), strict=True))
        with atomic_write(folder / f"{name}.png") as partial:
            draw_sheet([f"step {step}, seed {seed}" for seed in self.seeds], rows, partial)
        entries = [entry for entry in read_samples(self.folder) if entry["step"] < step]
        for number, (prompt, seed) in enumerate(pairs):
            files = {"file": f"{FOLDER}/{name}/{number:02d}.png", "grid": f"{FOLDER}/{name}.png"}
            entries.append({"step": step, "prompt": prompt, "seed": seed, **files, **clips.get(number, {})})
        write_json(self.folder / LIST, entries, ascii_only=False)


def read_samples(folder: Path) -> list[dict[str, Any]]:
    """The entries of ``samples.json`` of a run; empty without such a file."""
    path = folder / LIST
    return read_json_list(path) if path.is_file() else []


def draw_progress(folder: Path, path: Path, most: int = 6) -> bool:
    """Write a contact sheet with a row per prompt and seed and a column per step.

    Args:
        folder: of the run.
        path: the PNG to write.
        most: largest number of columns; the first and the last step are always shown.

    Returns:
        False if there are no samples.
    """
    import numpy
    from PIL import Image

    entries = read_samples(folder)
    steps = sorted({entry["step"] for entry in entries})
    if not steps:
        return False
    shown = sorted({steps[round(number * (len(steps) - 1) / max(1, most - 1))] for number in range(most)})
    cells: dict[str, list[Any]] = {}
    for entry in entries:
        if entry["step"] in shown:
            with Image.open(folder / entry["file"]) as image:
                cells.setdefault(f"{entry['prompt']}, seed {entry['seed']}", []).append(numpy.asarray(image))
    with atomic_write(path) as partial:
        draw_sheet(
            [f"step {step}" for step in shown], list(cells.items()), partial, cell_for_screen(len(shown), len(cells))
        )
    return True


def _parts(images: list[Any], size: int) -> Iterator[list[Any]]:
    yield from (images[at : at + size] for at in range(0, len(images), size))
