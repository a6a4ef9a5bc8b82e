"""How well generated images follow the Canny edges that they were conditioned on: IoU, accuracy, F1."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from orthotune.errors import DataError
from orthotune.metrics.image_files import read_rgb
from orthotune.metrics.image_pairs import Pair, pair
from orthotune.metrics.measured import Measured, noted, readable, same_size

#: Range of grey levels, and the largest share of grey pixels in an edge map. Lossy files blur an edge map a little;
#: photographs have mostly grey pixels.
GREY, MOST_GREY = (32, 223), 0.1


def canny(image: Any, low: float = 100, high: float = 200) -> Any:
    """Canny edges of an image, by OpenCV with its defaults (Sobel 3 x 3, L1 norm, no blur).

    Args:
        image: the image.
        low: lower threshold, 0 to 255.
        high: upper threshold, 0 to 255.

    Shapes: ``(height, width, 3)`` uint8 -> ``(height, width)`` bool.

    Source: thresholds 100 and 200 on 0 to 255, as ControlNet and OFT use them.

    Example:
        >>> canny(image).mean()  # doctest: +SKIP
        0.07
    """
    import cv2
    import numpy as np

    return cv2.Canny(np.ascontiguousarray(image), low, high) > 0


def edge_scores(wanted: Any, found: Any) -> dict[str, float]:
    """IoU, accuracy and F1 of edge pixels; each is 1 where both maps have no edges.

    Args:
        wanted: the edges of the condition.
        found: the edges of the result.

    Returns:
        ``iou``, ``accuracy`` and ``f1``, from 0 to 1.

    Shapes: both ``(height, width)`` bool, numpy arrays or tensors.

    Example:
        >>> import numpy as np
        >>> edge_scores(np.array([[True, True, False, False]]), np.array([[True, False, True, False]]))["accuracy"]
        0.5
    """
    both, either = int((wanted & found).sum()), int((wanted | found).sum())
    marked = int(wanted.sum()) + int(found.sum())
    pixels = wanted.shape[0] * wanted.shape[1]
    return {
        "iou": both / either if either else 1.0,
        "accuracy": (pixels - either + both) / pixels,
        "f1": 2 * both / marked if marked else 1.0,
    }


def edge_map(image: Any, name: str) -> Any:
    """The white pixels of an edge map, which is a black and white image.

    Args:
        image: the edge map.
        name: of the condition, for messages.

    Shapes: ``(height, width, 3)`` uint8 -> ``(height, width)`` bool.

    Raises:
        DataError: more than a tenth of the pixels are grey, so that the image is not an edge map.
    """
    grey = image.mean(axis=2)
    share = float(((grey > GREY[0]) & (grey < GREY[1])).mean())
    if share > MOST_GREY:
        raise DataError(
            f"condition {name}", got=f"{share:.0%} grey pixels", needed="a map of edges, white on black",
            do="Add --conditions-are photos if edges are to be taken from it",
        )  # fmt: skip
    return grey >= 128


def measure_edges(
    results: Path,
    conditions: Path,
    manifest: Path | None = None,
    *,
    conditions_are: Literal["edges", "photos"] = "edges",
    low: float = 100,
    high: float = 200,
    resize: bool = False,
    strict: bool = False,
) -> Measured:
    """Compare the edges of each condition with the Canny edges of its result; scores are means over the images.

    Args:
        results: folder of generated images.
        conditions: folder of the condition images.
        manifest: which condition belongs to which result; without a manifest, images are paired by name.
        conditions_are: ``edges``, white on black, used as they are; or ``photos``, whose Canny edges are computed
            first.
        low: lower threshold of Canny's detector.
        high: upper threshold of Canny's detector.
        resize: resize results of another size than their condition, instead of refusing them.
        strict: refuse missing or unreadable images, instead of skipping them.

    Raises:
        DataError: no images or pairs, a condition that is no map of edges, sizes that differ; with ``strict`` also
            anything missing or unreadable.

    Example:
        >>> measure_edges(Path("results"), Path("edges")).summary  # doctest: +SKIP
        {'iou': 0.193, 'accuracy': 0.93, 'f1': 0.323}
    """
    import numpy as np

    measured = Measured("canny", settings={"low": low, "high": high, "conditions_are": conditions_are})
    pairing = pair(results, conditions, manifest)
    noted(pairing.missing, measured, strict)

    def read(one: Pair) -> tuple[Any, Any]:
        return read_rgb(one.condition), read_rgb(one.result)

    for one, (condition, result) in readable(pairing.pairs, read, measured, strict):
        result = same_size(one.name, result, condition, resize)
        wanted = canny(condition, low, high) if conditions_are == "photos" else edge_map(condition, one.name)
        found = canny(result, low, high)
        measured.rows.append({"name": one.name, **edge_scores(wanted, found)})
        measured.show(one.name, condition, result, np.repeat(found[..., None] * np.uint8(255), 3, axis=2))
    measured.mean_of_rows("iou", "accuracy", "f1")
    return measured
