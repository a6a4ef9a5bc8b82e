"""The image of the toy experiment: patches, and their reconstructions from each part of the activations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from orthotune.files.atomic import atomic_write

if TYPE_CHECKING:
    from orthotune.experiments.toy.experiment import ToyResult

COLUMNS = 6
NAMES = {"full": "angle and magnitude", "angle": "angle only", "magnitude": "magnitude only"}


def draw(result: ToyResult, path: Path) -> None:
    """Write the image: the held-out patches on top, one row per reconstruction below.

    Args:
        result: of the experiment.
        path: of the PNG file.

    Example:
        >>> draw(result, Path("toy.png"))  # doctest: +SKIP
    """
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    rows = [("held-out patches", result.originals)]
    for found in result.reconstructions:
        where = f"\n({found.where})" if found.where else ""
        label = f"{NAMES[found.part]}{where}\nerror {found.error:.4f}\ncorrelation {found.correlation:.2f}"
        rows.append((label, found.images))
    figure = Figure(figsize=(1.9 + 1.1 * COLUMNS, 1.13 * len(rows)), layout="constrained", dpi=80)
    canvas = FigureCanvasAgg(figure)
    grid = figure.subplots(len(rows), COLUMNS, squeeze=False)
    for line, (label, images) in zip(grid, rows, strict=True):
        for axes, image in zip(line, images, strict=False):
            axes.imshow(((image.clamp(-1, 1) + 1) / 2).permute(1, 2, 0).numpy())
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
        line[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9, labelpad=8)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    with atomic_write(path) as partial:
        image.quantize(256).save(partial, format="PNG")  # a third of the bytes, and no difference to the eye
