"""``draw``: images and clips that a run, an adapter or a pipeline generates, at several strengths, beside its base."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from orthotune.errors import ConfigError
from orthotune.files.json_file import write_json
from orthotune.files.output import new_folder
from orthotune.image.data.clips import write_clip
from orthotune.image.opened_pipeline import OpenedPipeline, open_pipeline
from orthotune.metrics.contact_sheet import draw_sheet
from orthotune.runs.checkpoint_manifest import sha256_of

LIST, GRID = "images.json", "grid.png"
#: Sampling steps, unless given or set in the run.
STEPS = 20


@dataclass(frozen=True)
class GeneratedImage:
    """One generated image, with all that is needed to generate it again.

    Attributes:
        image: uint8 ``[3, H, W]``; of a clip ``[3, frames, H, W]``.
        prompt: as it was given.
        seed: of the noise.
        strength: of the adapter; None of an image without it.
        facts: source, base, adapter and its hash, steps, guidance; what a PNG file records.
        frame_rate: of a clip, frames in a second.
    """

    image: Tensor
    prompt: str
    seed: int
    strength: float | None
    facts: dict[str, Any]
    frame_rate: int = 24

    @property
    def column(self) -> str:
        """The name of its strength in a grid."""
        return "without adapter" if self.strength is None else f"strength {self.strength:g}"


def draw(
    source: str | Path | OpenedPipeline,
    prompts: str | Sequence[str],
    *,
    strengths: float | Sequence[float] = 1.0,
    seeds: int | Sequence[int] = 0,
    both: bool = False,
    steps: int | None = None,
    guidance: float | None = None,
    height: int | None = None,
    width: int | None = None,
    frames: int | None = None,
    batch_size: int = 4,
    base: str | Path | None = None,
    dtype: torch.dtype | None = None,
    show: Callable[[int], None] | None = None,
) -> list[GeneratedImage]:
    """Generate an image of every prompt from every seed at every strength of an adapter.

    The same prompt and seed begin with the same noise at all strengths, so that the adapter alone makes the difference.

    Args:
        source: the directory of a run, an adapter of any readable format, a pipeline (path, hub name or
            ``image-world``), or what :func:`~orthotune.image.opened_pipeline.open_pipeline` returned.
        prompts: one, or several.
        strengths: of the adapter: every angle of a rotation, or the change by a LoRA, times this; 0 is the base.
        seeds: of the noise.
        both: also generate without the adapter.
        steps: of the sampler; default: those of the run's samples, else 20.
        guidance: scale of the classifier-free guidance; default: that of the run, else of the family.
        height: in pixels; default: the resolution of the run, else the native size of the family.
        width: in pixels; as ``height``.
        frames: of a clip, for models of films; 1 for images. Default: that of the run, else 1.
        batch_size: images generated together; an image does not depend on it.
        base: of an adapter, if it does not record one or another is wanted.
        dtype: of the weights; float32 without an accelerator, else bfloat16 if None.
        show: called with the number of finished images.

    Returns:
        The images, prompt by prompt, in it seed by seed, in it strength by strength, without the adapter first.

    Raises:
        OrthotuneError: the source cannot be opened, see :func:`~orthotune.image.opened_pipeline.open_pipeline`.
        ConfigError: an empty prompt, no seed, or a strength that is not finite or that the adapter does not have.
        RecipeError: the family cannot generate images of this size, or clips of so many frames.

    Example:
        >>> found = draw("image-world", "a red seven", steps=2)
        >>> found[0].image.shape, found[0].strength
        (torch.Size([3, 32, 32]), None)
    """
    asked = [prompts] if isinstance(prompts, str) else list(prompts)
    if not asked or any(not one.strip() for one in asked):
        raise ConfigError("the prompt", got="an empty text", needed="a text that describes the image")
    numbers = [seeds] if isinstance(seeds, int) else list(seeds)
    levels = [float(strengths)] if isinstance(strengths, int | float) else [float(one) for one in strengths]
    if not numbers or not levels:
        raise ConfigError("seeds and strengths", got="an empty list", needed="at least one of each")
    if wrong := [one for one in numbers if not -(2**63) <= one < 2**64]:
        raise ConfigError(f"seed {wrong[0]}", needed="a whole number of 64 bits")
    opened = source if isinstance(source, OpenedPipeline) else open_pipeline(source, base, dtype)
    columns = _columns(opened, levels, both)
    options = _options(opened, steps, guidance, height, width, frames)
    facts = _facts(opened, options)
    pairs = [(prompt, seed) for prompt in asked for seed in numbers]
    found: dict[tuple[int, int], Tensor] = {}
    for place, strength in enumerate(columns):
        with opened.at(strength):
            for start in range(0, len(pairs), batch_size):
                part = pairs[start : start + batch_size]
                images = opened.family.generate(
                    [prompt for prompt, _ in part], [seed for _, seed in part], batch_size=batch_size, **options
                )
                found |= {(start + number, place): image for number, image in enumerate(images)}
                if show is not None:
                    show(len(found))
    return [
        GeneratedImage(found[row, place], prompt, seed, strength, facts, opened.family.frame_rate)
        for row, (prompt, seed) in enumerate(pairs)
        for place, strength in enumerate(columns)
    ]


def write_images(images: Sequence[GeneratedImage], out: Path, *, overwrite: bool = False) -> Path:
    """Write generated images as PNG files that record how they were generated, and a grid of all of them.

    Args:
        images: from :func:`draw`.
        out: the folder; it appears when it is complete. ``images.json`` lists the files, ``grid.png`` has a column for
            each strength, or for each seed where there is one strength. Of a clip, these show its first frame, and the
            complete clip is an animation beside it.
        overwrite: replace what is at ``out``.

    Returns:
        The folder.

    Raises:
        OutputError: ``out`` exists already or cannot be written.

    Example:
        >>> write_images(draw("runs/subject-oft", "a sks digit"), Path("images"))  # doctest: +SKIP
        PosixPath('images')
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    entries = []
    with new_folder(out, overwrite=overwrite) as folder:
        for number, one in enumerate(images):
            recorded = {"prompt": one.prompt, "seed": one.seed, "strength": one.strength, **one.facts}
            texts = PngInfo()
            texts.add_itxt("orthotune", json.dumps(recorded, ensure_ascii=False))
            texts.add_itxt("parameters", _parameters(recorded))
            name = f"{number:04}.png"
            Image.fromarray(_pixels(one)).save(folder / name, format="PNG", pnginfo=texts)
            entry = {**recorded, "file": name}
            if one.image.ndim == 4:
                clip = one.image.movedim(0, -1).numpy()
                entry["clip"] = write_clip(clip, folder / f"{number:04}", one.frame_rate).name
            entries.append(entry)
        write_json(folder / LIST, entries, ascii_only=False)
        draw_sheet(*_grid(images), folder / GRID)
    return out


def _columns(opened: OpenedPipeline, strengths: list[float], both: bool) -> list[float | None]:
    if opened.trained:
        found: list[float | None] = [None] if both else []
        for strength in strengths:
            with opened.at(strength):  # a strength that the adapter does not have is refused before any image
                found.append(strength)
        return found
    if both or strengths != [1.0]:
        raise ConfigError(
            "a strength" if not both else "images with the adapter and without",
            got=f"{opened.source}, a model without an adapter", needed="a run or an adapter",
        )  # fmt: skip
    return [None]


def _options(
    opened: OpenedPipeline, steps: int | None, guidance: float | None, height: int | None, width: int | None,
    frames: int | None,
) -> dict[str, Any]:  # fmt: skip
    run = opened.settings
    side = run.get("resolution")
    options: dict[str, Any] = {
        "steps": steps or run.get("sample_steps") or STEPS,
        "guidance": run.get("guidance") if guidance is None else guidance,
        "height": height or side or opened.family.native_size,
        "width": width or side or opened.family.native_size,
    }
    opened.family.check_size(options["height"], options["width"])
    count = run.get("frames", 1) if frames is None else frames
    opened.family.check_frames(count)
    if count > 1:
        options["frames"] = count
    return options


def _facts(opened: OpenedPipeline, options: dict[str, Any]) -> dict[str, Any]:
    guidance = opened.family.usual_guidance if options["guidance"] is None else options["guidance"]
    facts: dict[str, Any] = {"base": opened.base, "family": opened.family.name, **options, "guidance": guidance}
    if opened.adapter is not None:
        files = [opened.adapter] if opened.adapter.is_file() else sorted(opened.adapter.glob("*.safetensors"))
        facts |= {"adapter": str(opened.adapter), "sha256": {one.name: sha256_of(one) for one in files}}
    return facts


def _parameters(recorded: dict[str, Any]) -> str:
    """The text that viewers of generated images show: the prompt, then a line of settings."""
    shown = {
        "Steps": recorded["steps"], "CFG scale": recorded["guidance"], "Seed": recorded["seed"],
        "Size": f"{recorded['width']}x{recorded['height']}", "Model": recorded["base"],
        "Adapter": recorded.get("adapter"), "Strength": recorded["strength"],
    }  # fmt: skip
    return f"{recorded['prompt']}\n" + ", ".join(f"{key}: {value}" for key, value in shown.items() if value is not None)


def _pixels(one: GeneratedImage) -> Any:
    """Of a clip, its first frame."""
    first = one.image[:, 0] if one.image.ndim == 4 else one.image
    return first.permute(1, 2, 0).contiguous().numpy()


def _grid(images: Sequence[GeneratedImage]) -> tuple[list[str], list[tuple[str, list[Any]]]]:
    """Columns and rows of a sheet: strengths, or seeds where there is one strength."""
    by_strength = len({one.strength for one in images}) > 1
    columns = list(dict.fromkeys(one.column if by_strength else f"seed {one.seed}" for one in images))
    rows: dict[str, list[Any]] = {}
    for one in images:
        name = f"{one.prompt}, seed {one.seed}" if by_strength else one.prompt
        rows.setdefault(name, []).append(_pixels(one))
    return columns, list(rows.items())
