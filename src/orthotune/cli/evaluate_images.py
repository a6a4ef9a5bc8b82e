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
RESIZE = typer.Option(
    False, "--resize", help="Resize results of another size than their conditions instead of refusing them."
)
STRICT = typer.Option(False, "--strict", help="Refuse missing and unreadable files instead of counting them.")
DEVICE = typer.Option("cpu", "--device", help="Device of the model: cpu, cuda, mps, ...")
BATCH = typer.Option(8, "--batch-size", min=1, help="Images per batch.")


class Conditions(str, Enum):
    """The two kinds of conditions of ``evaluate canny``."""

    EDGES = "edges"
    PHOTOS = "photos"


def canny(
    results: Path = RESULTS,
    conditions: Path = typer.Argument(help="Folder of edge maps, white on black, with the names of the results."),
    manifest: Path = MANIFEST,
    conditions_are: Conditions = typer.Option(
        Conditions.EDGES, help="Kind of conditions; photos: their edges are computed first."
    ),
    low: float = typer.Option(100, min=0, help="Lower threshold of Canny, 0 to 255."),
    high: float = typer.Option(200, min=0, help="Upper threshold of Canny, 0 to 255."),
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
    conditions: Path = typer.Argument(help="Folder of maps of class numbers, with the names of the results."),
    manifest: Path = MANIFEST,
    maps: Path = typer.Option(None, help="Folder of the results' class maps, instead of running a model."),
    model: str = typer.Option(None, help="Segmentation model: path or hub name. Default: SegFormer B0 on ADE20K."),
    classes: int = typer.Option(None, min=1, help="Number of classes. Default: the model's."),
    ignored: int = typer.Option(255, help="Class number of the conditions that is ignored."),
    reduce_labels: bool = typer.Option(
        False, "--reduce-labels", help="Ignore class 0 and lower the other class numbers by one."
    ),
    batch_size: int = BATCH,
    device: str = DEVICE,
    resize: bool = RESIZE,
    strict: bool = STRICT,
    out: Path = OUT,
    overwrite: bool = OVERWRITE,
) -> None:
    """Compute mIoU, mAcc and aAcc between the given maps and a segmentation model's maps of the results.

    Example: orthotune evaluate segmentation results maps --device cuda
    """
    given = {} if model is None else {"model": model}
    run(
        "segmentation", out, overwrite, results, conditions, manifest, maps=maps, classes=classes, ignored=ignored,
        reduce_labels=reduce_labels, batch_size=batch_size, device=device, resize=resize, strict=strict, **given,
    )  # fmt: skip


def landmarks(
    results: Path = RESULTS,
    conditions: Path = typer.Argument(help='JSON {"name": [[x, y], ...]}, or a folder of photographs.'),
    manifest: Path = MANIFEST,
    found: Path = typer.Option(None, help="JSON of the results' points, instead of running a detector."),
    detector: str = typer.Option("face-alignment", help="face-alignment, or package.module:function."),
    points: int = typer.Option(68, min=1, help="Number of points of a face."),
    device: str = DEVICE,
    strict: bool = STRICT,
    out: Path = OUT,
    overwrite: bool = OVERWRITE,
) -> None:
    """Measure the mean distance in pixels between the wanted and the detected points of faces.

    Example: orthotune evaluate landmarks results points.json
    """
    run(
        "landmarks", out, overwrite, results, conditions, manifest, found=found, detect=detector, points=points,
        device=device, strict=strict,
    )  # fmt: skip


def subject(
    results: Path = RESULTS,
    references: Path = typer.Argument(
        help="Folder of photographs; if the manifest names subjects, one folder inside it for each."
    ),
    manifest: Path = MANIFEST,
    prompt: str = typer.Option(None, help="Prompt of the results for which the manifest has none."),
    measures: str = typer.Option("dino,clip-i,clip-t,lpips", help="Measures, separated by commas."),
    dino: str = typer.Option(None, help="DINO model: path or hub name. Default: DINO ViT-S/16."),
    clip: str = typer.Option(None, help="CLIP model: path or hub name. Default: CLIP ViT-B/32."),
    lpips: str = typer.Option("alex", help="Network of LPIPS: alex, vgg or squeeze."),
    batch_size: int = BATCH,
    device: str = DEVICE,
    strict: bool = STRICT,
    out: Path = OUT,
    overwrite: bool = OVERWRITE,
) -> None:
    """Measure fidelity to a subject (DINO, CLIP-I) and to prompts (CLIP-T), and diversity (LPIPS).

    Example: orthotune evaluate subject results photos --prompt "a photo of a sks dog"
    """
    given = {key: value for key, value in (("dino", dino), ("clip", clip)) if value is not None}
    run(
        "subject", out, overwrite, results, references, manifest, prompt=prompt, lpips=lpips, batch_size=batch_size,
        measures=[name.strip() for name in measures.split(",") if name.strip()], device=device, strict=strict, **given,
    )  # fmt: skip


def fid(
    results: Path = RESULTS,
    references: Path = typer.Argument(help="Folder of real images."),
    model: str = typer.Option("inception", help="inception, or the path or hub name of a vision model."),
    weights: Path = typer.Option(None, help="File with the weights of inception, instead of a download."),
    batch_size: int = BATCH,
    device: str = DEVICE,
    strict: bool = STRICT,
    out: Path = OUT,
    overwrite: bool = OVERWRITE,
) -> None:
    """Compute the Fréchet inception distance between results and real images; it needs thousands of images.

    Example: orthotune evaluate fid results real
    """
    run(
        "fid", out, overwrite, results, references, model=model, weights=weights, batch_size=batch_size, device=device,
        strict=strict,
    )  # fmt: skip
