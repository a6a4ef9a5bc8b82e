"""``orthotune evaluate``, over folders of images: canny, segmentation, landmarks, subject, fid."""

from __future__ import annotations

from enum import Enum
from pathlib import Path

import typer

from orthotune.cli.evaluation import run

RESULTS = typer.Argument(help="Folder of generated images.")
MANIFEST = typer.Option(
    None, "--manifest", help="JSON Lines or CSV: result, condition, prompt, subject. Default: RESULTS/manifest.jsonl."
)
OUT = typer.Option(None, "--out", "-o", help="Output folder. Default: runs/evaluate-MEASURE.")
OVERWRITE = typer.Option(False, "--overwrite", help="Replace what is at --out.")
RESIZE = typer.Option(False, "--resize", help="Bring results to the size of their conditions instead of refusing them.")
STRICT = typer.Option(False, "--strict", help="Refuse missing and unreadable files instead of counting them.")
DEVICE = typer.Option("cpu", "--device", help="Of the model: cpu, cuda, mps, ...")
BATCH = typer.Option(8, "--batch-size", min=1, help="Images that the model sees at once.")


class Conditions(str, Enum):
    """What the conditions of ``evaluate canny`` are."""

    EDGES = "edges"
    PHOTOS = "photos"


def canny(
    results: Path = RESULTS,
    conditions: Path = typer.Argument(help="Folder of edge maps, white on black, of the same names."),
    manifest: Path = MANIFEST,
    conditions_are: Conditions = typer.Option(Conditions.EDGES, help="photos: their edges are found first."),
    low: float = typer.Option(100, min=0, help="Lower threshold of Canny, 0 to 255 scale."),
    high: float = typer.Option(200, min=0, help="Upper threshold."),
    resize: bool = RESIZE,
    strict: bool = STRICT,
    out: Path = OUT,
    overwrite: bool = OVERWRITE,
) -> None:
    """IoU, accuracy and F1 between the edges of conditions and the Canny edges of results.

    Example: orthotune evaluate canny results edges
    """
    run(
        "canny", out, overwrite, results, conditions, manifest, conditions_are=conditions_are.value, low=low, high=high,
        resize=resize, strict=strict,
    )  # fmt: skip


def segmentation(
    results: Path = RESULTS,
    conditions: Path = typer.Argument(help="Folder of maps of class numbers, of the same names."),
    manifest: Path = MANIFEST,
    maps: Path = typer.Option(None, help="Folder of given maps of the results, instead of a model's."),
    model: str = typer.Option(None, help="Path or hub name. Default: SegFormer B0 on ADE20K."),
    classes: int = typer.Option(None, min=1, help="Default: the model's."),
    ignored: int = typer.Option(255, help="Class number of conditions that does not count."),
    reduce_labels: bool = typer.Option(False, "--reduce-labels", help="0 is ignored, the others count one less."),
    batch_size: int = BATCH,
    device: str = DEVICE,
    resize: bool = RESIZE,
    strict: bool = STRICT,
    out: Path = OUT,
    overwrite: bool = OVERWRITE,
) -> None:
    """Compute mIoU, mAcc and aAcc between maps and what a segmentation model sees in the results.

    Example: orthotune evaluate segmentation results maps --device cuda
    """
    said = {} if model is None else {"model": model}
    run(
        "segmentation", out, overwrite, results, conditions, manifest, maps=maps, classes=classes, ignored=ignored,
        reduce_labels=reduce_labels, batch_size=batch_size, device=device, resize=resize, strict=strict, **said,
    )  # fmt: skip


def landmarks(
    results: Path = RESULTS,
    conditions: Path = typer.Argument(help='JSON {"name": [[x, y], ...]}, or a folder of photographs.'),
    manifest: Path = MANIFEST,
    found: Path = typer.Option(None, help="JSON of the results' points, instead of a detector's."),
    detector: str = typer.Option("face-alignment", help="face-alignment, or package.module:function."),
    points: int = typer.Option(68, min=1, help="Points of a face."),
    device: str = DEVICE,
    strict: bool = STRICT,
    out: Path = OUT,
    overwrite: bool = OVERWRITE,
) -> None:
    """Measure the mean distance in pixels between points of faces, wanted and found.

    Example: orthotune evaluate landmarks results points.json
    """
    run(
        "landmarks", out, overwrite, results, conditions, manifest, found=found, detect=detector, points=points,
        device=device, strict=strict,
    )  # fmt: skip


def subject(
    results: Path = RESULTS,
    references: Path = typer.Argument(help="Folder of photographs; with subjects in the manifest, of one folder each."),
    manifest: Path = MANIFEST,
    prompt: str = typer.Option(None, help="Of every result, where the manifest names none."),
    measures: str = typer.Option("dino,clip-i,clip-t,lpips", help="Some of these, with commas."),
    dino: str = typer.Option(None, help="Path or hub name. Default: DINO ViT-S/16."),
    clip: str = typer.Option(None, help="Path or hub name. Default: CLIP ViT-B/32."),
    lpips: str = typer.Option("alex", help="alex, vgg or squeeze."),
    batch_size: int = BATCH,
    device: str = DEVICE,
    strict: bool = STRICT,
    out: Path = OUT,
    overwrite: bool = OVERWRITE,
) -> None:
    """Measure fidelity to a subject (DINO, CLIP-I) and to prompts (CLIP-T), and diversity (LPIPS).

    Example: orthotune evaluate subject results photos --prompt "a photo of a sks dog"
    """
    said = {key: value for key, value in (("dino", dino), ("clip", clip)) if value is not None}
    run(
        "subject", out, overwrite, results, references, manifest, prompt=prompt, lpips=lpips, batch_size=batch_size,
        measures=[word.strip() for word in measures.split(",") if word.strip()], device=device, strict=strict, **said,
    )  # fmt: skip


def fid(
    results: Path = RESULTS,
    references: Path = typer.Argument(help="Folder of real images."),
    model: str = typer.Option("inception", help="inception, or path or hub name of a vision model."),
    weights: Path = typer.Option(None, help="File of inception's weights, instead of a download."),
    batch_size: int = BATCH,
    device: str = DEVICE,
    strict: bool = STRICT,
    out: Path = OUT,
    overwrite: bool = OVERWRITE,
) -> None:
    """Compute the Fréchet inception distance between results and real images; fewer than thousands say little.

    Example: orthotune evaluate fid results real
    """
    run(
        "fid", out, overwrite, results, references, model=model, weights=weights, batch_size=batch_size, device=device,
        strict=strict,
    )  # fmt: skip
