"""Pictures of a subject's class, drawn by the model itself, so that it does not forget the class.

The prior preservation of DreamBooth (Ruiz et al. 2023, arXiv 2208.12242, section 3.2) trains on them beside the
subject's pictures.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Literal

from orthotune.errors import DataError, OutputError
from orthotune.files.atomic import atomic_write
from orthotune.files.failed_write import writing
from orthotune.files.json_file import read_json, write_json
from orthotune.image.data.image_folder import Picture, Say, open_pictures, read_folder
from orthotune.image.families.family import Family
from orthotune.metrics.measured import batches
from orthotune.runs.progress import StepBar

MANIFEST = "class-images.json"
Other = Literal["refuse", "regenerate"]


def class_images(
    family: Family,
    folder: Path,
    prompt: str,
    count: int,
    *,
    model: str,
    seed: int = 0,
    height: int | None = None,
    width: int | None = None,
    steps: int = 50,
    guidance: float | None = None,
    batch_size: int = 4,
    other: Other = "refuse",
    say: Say = print,
    bar: bool = False,
) -> list[Picture]:
    """``count`` images of ``prompt`` in ``folder``; those that are missing are generated and written one by one.

    Image ``n`` is drawn from seed ``seed * 1000003 + n`` and named ``n``, so a generation that was cut off goes on
    where it stopped and ends with the same images. A file ``class-images.json`` beside them says what they are. A
    folder of images without that file is the user's own: it is used as it is, all of it, and never written to.

    Args:
        family: the model.
        folder: where the images are, and are written.
        prompt: of every image.
        count: how many images there are at the end.
        model: what the manifest calls the model.
        seed: of the whole folder.
        height: in pixels; default: the family's native size.
        width: in pixels; default: the family's native size.
        steps: of the sampler.
        guidance: scale of the classifier-free guidance; default: the family's.
        batch_size: images that are generated at once.
        other: when the folder's images were made with other settings: ``refuse``, or ``regenerate`` them all.
        say: gets a message about what is generated.
        bar: show a progress bar.

    Raises:
        DataError: images made with other settings (or broken ones of the user's own, none readable).
        OutputError: too little disk space for the images, before any is drawn; or the folder cannot be written to.

    Example:
        >>> class_images(family, Path("dogs"), "a dog", 200, model="sd15")[0].name  # doctest: +SKIP
        '00000'
    """
    folder = Path(folder)
    wanted = {
        "model": model, "prompt": prompt, "seed": seed, "height": height or family.native_size,
        "width": width or family.native_size, "steps": steps, "guidance": guidance,
    }  # fmt: skip
    if count < 1:
        raise DataError(f"class images in {folder}", got=f"count={count}", needed="1 or more")
    manifest = folder / MANIFEST
    if not manifest.is_file() and folder.is_dir() and any(not one.name.startswith(".") for one in folder.iterdir()):
        return _own(folder, count, say)
    if manifest.is_file():
        _same(_read(manifest), wanted, folder, other, say)
    paths = [folder / f"{number:05}.png" for number in range(count)]
    missing = [number for number, path in enumerate(paths) if not path.is_file()]
    if missing:
        _room(folder, len(missing), int(wanted["height"]) * int(wanted["width"]))  # type: ignore[call-overload]
        say(f"{len(missing)} of {count} class images are missing and drawn: {prompt!r}, into {folder}.")
        with writing(folder, f"class images in {folder}"):
            folder.mkdir(parents=True, exist_ok=True)
        # First: images without it would be taken for the user's own.
        write_json(manifest, wanted)
        _draw(family, paths, missing, wanted, batch_size, bar)
    found = open_pictures([(path.stem, path) for path in paths], f"in {folder}", "refuse", say)
    return [picture for picture in found if picture is not None]


def _draw(
    family: Family, paths: list[Path], missing: list[int], wanted: dict[str, Any], batch_size: int, bar: bool
) -> None:
    from PIL import Image

    progress = StepBar("class images", bar)
    progress.start(len(paths), len(paths) - len(missing))
    done = len(paths) - len(missing)
    try:
        for numbers in batches(missing, batch_size):
            pictures = family.generate(
                [wanted["prompt"]] * len(numbers),
                [wanted["seed"] * 1_000_003 + number for number in numbers],
                steps=wanted["steps"],
                guidance=wanted["guidance"],
                height=wanted["height"],
                width=wanted["width"],
                batch_size=batch_size,
            )
            for number, picture in zip(numbers, pictures, strict=True):
                with atomic_write(paths[number]) as partial:
                    Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()).save(partial, format="PNG")
                done += 1
                progress.show(done, {})
    finally:
        progress.close()


def _own(folder: Path, count: int, say: Say) -> list[Picture]:
    pictures = read_folder(folder, say=say)
    if len(pictures) < count:
        say(f"{folder} holds {len(pictures)} class images of your own; {count} were asked for, none is added.")
    return pictures


def _read(manifest: Path) -> dict[str, Any]:
    return read_json(manifest, named="class images", do="Remove the folder to draw them anew")


def _same(said: dict[str, Any], wanted: dict[str, Any], folder: Path, other: Other, say: Say) -> None:
    changed = [key for key in wanted if said.get(key) != wanted[key]]
    if not changed:
        return
    differences = ", ".join(f"{key} {said.get(key)!r} instead of {wanted[key]!r}" for key in changed)
    if other != "regenerate":
        raise DataError(
            f"class images in {folder}", got=f"pictures made with {differences}",
            do='Name another folder, or pass other="regenerate" to draw them anew',
        )  # fmt: skip
    say(f"The class images in {folder} were made with {differences}; they are drawn anew.")
    # Only what this file's own manifest speaks of: five digits and .png.
    for path in folder.glob("[0-9][0-9][0-9][0-9][0-9].png"):
        path.unlink()


def _room(folder: Path, count: int, pixels: int) -> None:
    """Refuse to begin when the images may not fit: a PNG of noise is a little larger than its pixels."""
    place = folder
    while not place.exists():
        place = place.parent
    need, free = round(count * pixels * 3 * 1.05), shutil.disk_usage(place).free
    if free < need:
        raise OutputError(
            f"{count} class images in {folder}", got=f"{free / 1e6:,.1f} MB free", needed=f"up to {need / 1e6:,.1f} MB",
            do="Make room, ask for fewer, or name a folder on another disk",
        )  # fmt: skip
