"""LPIPS diversity: the perceptual distance between results of the same prompt."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch

from orthotune.errors import ConfigError, DataError

NETWORKS = ("alex", "vgg", "squeeze")


class Perceptual:
    """The LPIPS network of torchmetrics, loaded once.

    Args:
        network: ``alex``, ``vgg`` or ``squeeze``; the weights are torchvision's, downloaded into torch's cache if
            absent.
        device: where the network runs.

    Raises:
        ConfigError: an unknown network, or a torchvision that was not built for this torch.
        ModuleNotFoundError: no torchmetrics or torchvision.

    Source: LPIPS, arXiv 1801.03924.

    Example:
        >>> Perceptual("alex").distance(one, other)  # doctest: +SKIP
        0.71
    """

    def __init__(self, network: str = "alex", device: str = "cpu") -> None:
        if network not in NETWORKS:
            raise ConfigError(f"network={network}", needed=", ".join(NETWORKS))
        try:
            import torchvision  # noqa: F401
        except RuntimeError as fault:  # its compiled part was made for another torch
            raise ConfigError(
                f"torchvision beside torch {torch.__version__}", got=str(fault),
                do="Install the torchvision that was built for this torch, or leave lpips out of --measures",
            ) from fault  # fmt: skip
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        known: Any = network
        self.network: Any = LearnedPerceptualImagePatchSimilarity(net_type=known, normalize=True).net.to(device)
        self.device = device

    @torch.no_grad()
    def distance(self, one: Any, other: Any) -> float:
        """LPIPS between two images of one size; 0 for the same image.

        Args:
            one: an image.
            other: another image, or the same.

        Shapes: both ``(height, width, 3)`` uint8 arrays.

        Raises:
            DataError: their sizes differ.
        """
        if one.shape != other.shape:
            sizes = f"{one.shape[1]} x {one.shape[0]} and {other.shape[1]} x {other.shape[0]} pixels"
            raise DataError("LPIPS between two results", got=sizes, needed="one size")
        first, second = (torch.from_numpy(side).permute(2, 0, 1)[None].to(self.device) / 255 for side in (one, other))
        return float(self.network(first, second, normalize=True))


def summed_distance(images: Sequence[Any], perceptual: Perceptual) -> tuple[float, int]:
    """LPIPS summed over all pairs of images.

    Args:
        images: ``(height, width, 3)`` uint8 arrays of one size.
        perceptual: the network.

    Returns:
        The sum, and the number of pairs.
    """
    distances = [perceptual.distance(one, other) for one, other in combinations(images, 2)]
    return sum(distances), len(distances)
