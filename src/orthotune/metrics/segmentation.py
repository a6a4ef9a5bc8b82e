"""How well generated images follow the segmentation map that they were conditioned on: mIoU, mAcc, aAcc."""

from __future__ import annotations

import colorsys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from orthotune.errors import DataError
from orthotune.metrics.image_files import find_images, read_labels, read_rgb
from orthotune.metrics.image_pairs import Pair, pair
from orthotune.metrics.measured import Measured, batches, noted, readable, same_size

SEGFORMER = "nvidia/segformer-b0-finetuned-ade-512-512"
IGNORED = 255


def confusion(wanted: Tensor, found: Tensor, classes: int, ignored: int = IGNORED) -> Tensor:
    """Confusion matrix of pixels: wanted classes in rows, found classes in columns.

    Args:
        wanted: class numbers of the condition, integers of any shape.
        found: class numbers of the result, in the same shape.
        classes: number of classes.
        ignored: class number of ``wanted`` whose pixels do not count.

    Returns:
        Numbers of pixels, ``(classes, classes)`` int64.

    Raises:
        DataError: a class number that is not below ``classes``.

    Example:
        >>> confusion(torch.tensor([0, 0, 1, 255]), torch.tensor([0, 1, 1, 1]), 2)
        tensor([[1, 1],
                [0, 1]])
    """
    counted = wanted != ignored
    rows, columns = wanted[counted].long(), found[counted].long()
    highest = max([int(side.max()) for side in (rows, columns) if side.numel()], default=0)
    lowest = min([int(side.min()) for side in (rows, columns) if side.numel()], default=0)
    if highest >= classes or lowest < 0:
        got = f"class {highest if highest >= classes else lowest}"
        raise DataError("a segmentation map", got=got, needed=f"0 to {classes - 1}", do="Pass --classes or --ignored")
    return torch.bincount(rows * classes + columns, minlength=classes**2).view(classes, classes)


def segmentation_scores(matrix: Tensor) -> dict[str, float]:
    """mIoU and mAcc, means over the classes that occur, and aAcc, the share of correct pixels; all from 0 to 1.

    mIoU is over the classes that are wanted or found, mAcc over the classes that are wanted.

    Shapes: ``(classes, classes)``, as :func:`confusion` gives it.

    Example:
        >>> segmentation_scores(torch.tensor([[1, 1], [0, 2]]))["aacc"]
        0.75
    """
    right, wanted, found = matrix.diagonal().double(), matrix.sum(1).double(), matrix.sum(0).double()
    union = wanted + found - right
    return {
        "miou": float((right / union)[union > 0].mean()),
        "macc": float((right / wanted)[wanted > 0].mean()),
        "aacc": float(right.sum() / wanted.sum()),
    }


@torch.no_grad()
def segment(images: list[Any], model: Any, processor: Any) -> list[Tensor]:
    """The class of each pixel, at the size of each image.

    Args:
        images: the images, sizes may differ.
        model: a segmentation model of transformers.
        processor: the image processor of the model.

    Shapes: each ``(height, width, 3)`` uint8 -> ``(height, width)`` int64 on the CPU.
    """
    inputs = processor(images=images, return_tensors="pt").to(model.device)
    sizes = [image.shape[:2] for image in images]
    return [map_.cpu() for map_ in processor.post_process_semantic_segmentation(model(**inputs), target_sizes=sizes)]


def measure_segmentation(
    results: Path,
    conditions: Path,
    manifest: Path | None = None,
    *,
    maps: Path | None = None,
    model: str = SEGFORMER,
    classes: int | None = None,
    ignored: int = IGNORED,
    reduce_labels: bool = False,
    batch_size: int = 8,
    device: str = "cpu",
    resize: bool = False,
    strict: bool = False,
) -> Measured:
    """Compare the map of each condition with the map that a segmentation model finds in its result, over all pixels.

    Args:
        results: folder of generated images.
        conditions: maps of class numbers.
        manifest: which condition belongs to which result; without a manifest, images are paired by name.
        maps: folder with maps of the results, paired with them by name, instead of running a model.
        model: path or hub name of a segmentation model of transformers.
        classes: number of classes; by default that of the model, with ``maps`` 255.
        ignored: class number of the conditions whose pixels do not count.
        reduce_labels: ignore class 0 of the conditions and subtract one from all others, as in the files of ADE20K.
        batch_size: images per forward of the model.
        device: where the model runs.
        resize: resize results of another size than their condition, instead of refusing them.
        strict: refuse missing or unreadable images, instead of skipping them.

    Raises:
        DataError: no images or pairs, coloured maps, class numbers beyond ``classes``, sizes that differ; with
            ``strict`` also anything missing or unreadable.

    Example:
        >>> measure_segmentation(Path("results"), Path("maps"), model="models/segformer").summary  # doctest: +SKIP
        {'miou': 0.27, 'macc': 0.4, 'aacc': 0.62}
    """
    settings = {"model": None if maps else model, "ignored": ignored, "reduce_labels": reduce_labels}
    measured = Measured("segmentation", settings=settings)
    pairing = pair(results, conditions, manifest)
    noted(pairing.missing, measured, strict)
    given = find_images(maps) if maps else {}
    network, processor = (None, None) if maps else _load(model, device)
    classes = classes or (int(network.config.num_labels) if network is not None else 255)
    settings["classes"] = classes
    total = torch.zeros(classes, classes, dtype=torch.long)

    def read(one: Pair) -> tuple[Any, Any, Any]:
        if maps and one.name not in given:
            raise DataError(f"map of result {one.name}", got=f"none in {maps}")
        seen = torch.from_numpy(read_labels(given[one.name])) if maps else None
        return read_labels(one.condition), read_rgb(one.result), seen

    def count(batch: list[tuple[Pair, Any, Any, Any]]) -> None:
        nonlocal total
        unseen = [result for _, _, result, seen in batch if seen is None]
        found = segment(unseen, network, processor) if unseen else [seen for *_, seen in batch]
        for (one, condition, result, _), map_ in zip(batch, found, strict=True):
            wanted = torch.from_numpy(condition)
            if reduce_labels:
                wanted = torch.where(wanted == 0, ignored, wanted - (wanted != ignored).long())
            if map_.shape != wanted.shape:
                raise DataError(
                    f"map of result {one.name}", got=_size(map_), needed=f"{_size(wanted)}, as its condition"
                )
            matrix = confusion(wanted, map_, classes, ignored)
            total += matrix
            measured.rows.append({"name": one.name, "aacc": float(matrix.diagonal().sum() / matrix.sum().clamp_min(1))})
            measured.show(one.name, colours(wanted), result, colours(map_))

    ready = (
        (one, condition, same_size(one.name, result, condition, resize), seen)
        for one, (condition, result, seen) in readable(pairing.pairs, read, measured, strict)
    )
    for batch in batches(ready, batch_size):
        count(batch)
    measured.mean_of_rows("aacc")
    if not int(total.sum()):
        raise DataError("segmentation", got=f"every pixel of every condition ignored ({ignored})")
    measured.summary = segmentation_scores(total)
    return measured


def colours(map_: Tensor) -> Any:
    """A colour for each class number: ``(height, width)`` -> ``(height, width, 3)`` uint8."""
    colours = [colorsys.hsv_to_rgb(index * 0.618034 % 1, 0.65, 0.95) for index in range(int(map_.max()) + 1)]
    return (torch.tensor(colours)[map_.long()] * 255).byte().numpy()


def _size(map_: Tensor) -> str:
    return f"{map_.shape[1]} x {map_.shape[0]} pixels"


def _load(model: str, device: str) -> tuple[Any, Any]:
    from transformers import AutoModelForSemanticSegmentation

    from orthotune.metrics.vision_model import load

    return load(model, device, AutoModelForSemanticSegmentation)
