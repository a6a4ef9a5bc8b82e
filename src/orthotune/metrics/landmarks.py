"""Distance between the facial landmarks of a generated image and those of its condition, in pixels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from orthotune.errors import DataError
from orthotune.files.json_file import read_json
from orthotune.metrics.image_files import find_images, read_rgb
from orthotune.metrics.image_pairs import entries
from orthotune.metrics.landmark_detectors import FACE_ALIGNMENT, Detector, detector
from orthotune.metrics.measured import Measured, noted, readable

POINTS = 68


def point_error(wanted: Any, found: Any) -> float:
    """The mean distance between corresponding points, in the unit of the points.

    Args:
        wanted: landmarks of the condition.
        found: landmarks of the result, in the same order.

    Shapes: both ``(points, 2)``.

    Example:
        >>> import numpy as np
        >>> point_error(np.zeros((2, 2)), np.array([[3.0, 4.0], [0.0, 0.0]]))
        2.5
    """
    import numpy as np

    return float(np.linalg.norm(wanted - found, axis=1).mean())


def read_points(path: Path, count: int = POINTS) -> dict[str, Any]:
    """Points by image name from a JSON object ``{"name": [[x, y], ...]}``, in pixels.

    Args:
        path: the file.
        count: points per image.

    Shapes: each ``(count, 2)`` float64 array.

    Raises:
        DataError: the file is missing or not such an object, or an image has another number of points.

    Example:
        >>> read_points(Path("points.json"))["face-1"].shape  # doctest: +SKIP
        (68, 2)
    """
    import numpy as np

    needed = '{"name": [[x, y], ...]}'
    content = read_json(path, named="points", needed=needed)
    if not content:
        raise DataError(f"points {path}", got="no names", needed=needed)
    found = {}
    for name, points in content.items():
        try:
            array = np.asarray(points, dtype=np.float64)
        except (TypeError, ValueError):
            array = np.empty(0)
        if array.shape != (count, 2) or not np.isfinite(array).all():
            raise DataError(f"points {path}, {name}", got=f"shape {array.shape}", needed=f"{count} pairs of numbers")
        found[name] = array
    return found


def measure_landmarks(
    results: Path,
    conditions: Path,
    manifest: Path | None = None,
    *,
    found: Path | None = None,
    detect: str | Detector = FACE_ALIGNMENT,
    points: int = POINTS,
    device: str = "cpu",
    strict: bool = False,
) -> Measured:
    """The mean distance in pixels between the landmarks of each condition and of its result, averaged over images.

    Args:
        results: folder of generated images.
        conditions: a file of points as :func:`read_points` reads it, or a folder of photographs, whose landmarks are
            detected first.
        manifest: which condition belongs to which result; without a manifest, images are paired by name.
        found: a file with the points of the results, instead of detecting them.
        detect: ``face-alignment``, ``package.module:function``, or a function.
        points: number of points per image.
        device: where the detector runs.
        strict: refuse missing or unreadable images and images without a face, instead of skipping them.

    Raises:
        DataError: no images or points, another number of points, a photograph of another size than its result; with
            ``strict`` also anything missing or unreadable, and images without a face.

    Source: OFT, arXiv 2306.07280, table 2 (L2F).

    Example:
        >>> measure_landmarks(Path("results"), Path("points.json")).summary  # doctest: +SKIP
        {'error_pixels': 7.07}
    """
    named = detect if isinstance(detect, str) else getattr(detect, "__name__", "a function")
    measured = Measured("landmarks", settings={"points": points, "detector": None if found else named})
    given = read_points(found, points) if found else None
    photos = find_images(conditions) if conditions.is_dir() else None
    known = None if photos else read_points(conditions, points)
    finder: Detector | None = None
    if given is None or photos:
        finder = detector(detect, device) if isinstance(detect, str) else detect
    missing, ready = [], []
    for entry in entries(results, manifest):
        name = Path(entry.result).with_suffix("").as_posix()
        wanted = Path(entry.condition).with_suffix("").as_posix() if entry.condition else name
        if not (results / entry.result).is_file():
            missing.append(f"result {entry.result} is not there")
        elif wanted not in (photos or known or {}):
            missing.append(f"result {entry.result} has no condition")
        else:
            ready.append((name, results / entry.result, wanted))
    noted(missing, measured, strict)

    def read(one: tuple[str, Path, str]) -> tuple[Any, Any, Any, Any]:
        name, path, wanted = one
        result = read_rgb(path)
        photo = read_rgb(photos[wanted]) if photos else None
        target = _points(f"condition {wanted}", photo, known and known[wanted], finder, points)
        if given is not None and name not in given:
            raise DataError(f"points of result {name}", got=f"none in {found}")
        return result, photo, target, _points(f"result {name}", result, given and given[name], finder, points)

    for (name, _, _), (result, photo, target, seen) in readable(ready, read, measured, strict):
        if photo is not None and photo.shape != result.shape:
            got, needed = (f"{image.shape[1]} x {image.shape[0]} pixels" for image in (result, photo))
            raise DataError(f"result {name}", got=got, needed=f"{needed}, as its condition")
        measured.rows.append({"name": name, "error_pixels": point_error(target, seen)})
        blank = result * 0
        measured.show(name, mark(blank if photo is None else photo, target), result, mark(result, seen))
    measured.mean_of_rows("error_pixels")
    return measured


def _points(name: str, image: Any, given: Any, finder: Callable[[Any], Any] | None, count: int) -> Any:
    if given is not None:
        return given
    import numpy as np

    found = finder(image) if finder else None
    if found is None:
        raise DataError(name, got="no face")
    points = np.asarray(found, dtype=np.float64)
    if points.shape != (count, 2):
        raise DataError(name, got=f"points of shape {points.shape} from the detector", needed=f"({count}, 2)")
    return points


def mark(image: Any, points: Any) -> Any:
    """A copy of the image with a dot at each point.

    Args:
        image: ``(height, width, 3)`` uint8.
        points: ``(points, 2)`` as x, y in pixels.
    """
    import numpy as np
    from PIL import Image, ImageDraw

    marked = Image.fromarray(image)
    radius = max(1, max(marked.size) // 128)
    for x, y in points:
        ImageDraw.Draw(marked).ellipse((x - radius, y - radius, x + radius, y + radius), fill=(0, 230, 0))
    return np.array(marked)
