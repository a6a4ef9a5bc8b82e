"""Fréchet inception distance between results and real images, by torchmetrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from orthotune.errors import ConfigError, DataError
from orthotune.metrics.image_files import find_images, read_rgb
from orthotune.metrics.measured import Measured, batches, readable

INCEPTION = "inception"
FEATURES = 2048


def frechet_distance(real: Tensor, made: Tensor) -> float:
    """The Fréchet distance between two normal distributions fitted to features: 0 for equal ones, computed in float64.

    Args:
        real: features of real images.
        made: features of generated images.

    Shapes: ``(images, features)`` each, at least two images.

    Raises:
        DataError: fewer than two images on a side.

    Source: arXiv 1706.08500, equation 6.

    Example:
        >>> features = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
        >>> round(frechet_distance(features, features + 2), 6)  # doctest: +SKIP
        12.0
    """
    for name, side in (("real images", real), ("results", made)):
        if len(side) < 2:
            raise DataError(f"FID of {name}", got=f"{len(side)} image", needed="two at least, thousands for a figure")
    given = nn.Identity()
    given.num_features = real.shape[1]  # type: ignore[assignment]
    metric = _torchmetrics().FrechetInceptionDistance(feature=given)
    metric.update(real.double(), real=True)
    metric.update(made.double(), real=False)
    return max(0.0, float(metric.compute()))  # rounding can make a distance of 0 slightly negative


def measure_fid(
    results: Path,
    references: Path,
    *,
    model: str = INCEPTION,
    weights: Path | None = None,
    batch_size: int = 16,
    device: str = "cpu",
    strict: bool = False,
) -> Measured:
    """FID of generated images against real images; the images are not paired.

    Args:
        results: folder of generated images.
        references: folder of real images.
        model: ``inception``, the network of published scores, through torch-fidelity; or the path or hub name of a
            vision model of transformers, whose embeddings are then used as features.
        weights: a file with the weights of inception, instead of a download.
        batch_size: images per forward of the network.
        device: where the network runs.
        strict: refuse unreadable images, instead of skipping them.

    Raises:
        DataError: no images, fewer than two on a side; with ``strict`` also unreadable ones.

    Example:
        >>> measure_fid(Path("results"), Path("photos")).summary["fid"]  # doctest: +SKIP
        30.8
    """
    measured = Measured("fid", settings={"model": model}, columns=("real image", "result"))
    if model == INCEPTION:
        features = _inception(weights, device)
    else:
        from orthotune.metrics.vision_model import image_embeddings, load

        parts = load(model, device)

        def features(images: list[Any]) -> Tensor:
            return image_embeddings(images, *parts, batch_size=batch_size)

    sides, shown = [], []
    for folder in (references, results):
        files = find_images(folder)
        images = readable(files.items(), lambda item: read_rgb(item[1]), measured, strict)
        vectors: list[Tensor] = []
        first: list[tuple[str, Any]] = []
        for batch in batches(images, batch_size):
            vectors.append(features([image for _, image in batch]))
            first += [(name, image) for (name, _), image in batch][: 12 - len(first)]
        if not vectors:
            raise DataError(f"images in {folder}", got="not one that can be read")
        sides.append(torch.cat(vectors))
        shown.append(first)
    for (_, real), (name, made) in zip(*shown, strict=False):
        measured.show(name, real, made)
    counts = {"real_images": len(sides[0]), "results": len(sides[1])}
    measured.settings |= {**counts, "features": sides[0].shape[1]}
    measured.summary = {"fid": frechet_distance(*sides), **counts}
    return measured


def _torchmetrics() -> Any:
    try:
        from torchmetrics.image import fid
    except RuntimeError as fault:
        raise ConfigError(
            f"torchvision beside torch {torch.__version__}", got=str(fault),
            do="Install the torchvision that was built for this torch, or remove it",
        ) from fault  # fmt: skip
    return fid


def _inception(weights: Path | None, device: str) -> Any:
    import torch_fidelity  # noqa: F401  (torchmetrics does not name the missing package)

    network = _torchmetrics().NoTrainInceptionV3(
        name="inception-v3-compat", features_list=[str(FEATURES)],
        feature_extractor_weights_path=str(weights) if weights else None,
    ).to(device)  # fmt: skip

    @torch.no_grad()
    def features(images: list[Any]) -> Tensor:
        found = []
        for image in images:  # one by one: sizes may differ, and the network resizes each to 299 x 299
            pixels = torch.from_numpy(image).permute(2, 0, 1)[None].to(device)
            found.append(network(pixels).reshape(1, -1).cpu())
        return torch.cat(found)

    return features
