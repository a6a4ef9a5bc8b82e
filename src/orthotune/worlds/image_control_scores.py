"""Scores of a controlled model of the image world: how well its images follow control images and prompts.

All images are uint8 [n, 3, 32, 32]. Scores are 1 at best and 0 at worst.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from orthotune.worlds import image
from orthotune.worlds.image_captions import NUMBERS, SUBJECT, Prompt, sentence
from orthotune.worlds.image_classifiers import Classifier, follows, mask_seen
from orthotune.worlds.image_data import Scene, compose_all, mask, random_scene
from orthotune.worlds.image_scores import COUNT, NOISE, Split, balance, follow_all, part
from orthotune.worlds.image_sources import Sources


def mask_iou(wanted: Tensor, found: Tensor) -> float:
    """Intersection over union of two masks; 1 for two empty masks.

    Args:
        wanted: bool [height, width].
        found: bool [height, width].

    Example:
        >>> mask_iou(torch.tensor([[True, True, False]]), torch.tensor([[False, True, True]]))
        0.3333333333333333
    """
    either = int((wanted | found).sum())
    return int((wanted & found).sum()) / either if either else 1.0


def outline(shape: Tensor) -> Tensor:
    """The border of a mask: its pixels next to a pixel outside it or to the edge of the image; bool [height, width]."""
    inside = -max_pool2d(-torch.nn.functional.pad(shape.float(), (1, 1, 1, 1))[None], 3, 1)[0]
    return shape & (inside < 0.5)


def edge_f1(wanted: Tensor, found: Tensor, tolerance: int = 1) -> float:
    """F1 of edge pixels, with a tolerance: a pixel is correct if the other map has an edge pixel nearby.

    Like the scores of boundaries in segmentation (Martin et al. 2004), with a square neighbourhood instead of a
    matching. The score of two empty maps is 1.

    Args:
        wanted: bool [height, width].
        found: bool [height, width].
        tolerance: largest distance in pixels.

    Example:
        >>> upper, lower = torch.zeros(2, 4, 5, dtype=torch.bool)
        >>> upper[1], lower[2] = True, True
        >>> edge_f1(upper, lower), edge_f1(upper, lower, tolerance=0)
        (1.0, 0.0)
    """
    if not wanted.any() or not found.any():
        return float(wanted.any() == found.any())
    hit, met = found & _grown(wanted, tolerance), wanted & _grown(found, tolerance)
    precision, recall = float(hit.sum() / found.sum()), float(met.sum() / wanted.sum())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _grown(edges: Tensor, by: int) -> Tensor:
    return max_pool2d(edges[None].float(), 2 * by + 1, 1, by)[0] > 0


@dataclass(frozen=True)
class ControlScores:
    """Scores a controlled model on scenes of held-out digits on plain grounds.

    Args:
        split: of digits, scenes and noise.
        count: number of scenes.

    Example:
        >>> ControlScores("test", count=1).wanted[0].text.endswith("background")
        True
    """

    split: Split = "validation"
    count: int = COUNT

    @cached_property
    def scenes(self) -> list[Scene]:
        """The scenes that the model must generate."""
        rows = part(self.split, self._sources.rows(tuple(range(SUBJECT)), held_out=True))
        chance = random.Random(NOISE[self.split])
        return [random_scene(rows, chance, textured=0.0) for _ in range(self.count)]

    @cached_property
    def images(self) -> Tensor:
        """Images of the scenes, from which control images are computed."""
        return compose_all(self.scenes, self._sources)

    @cached_property
    def masks(self) -> Tensor:
        """The pixels of the digits: bool [n, 32, 32]."""
        return torch.stack([mask(scene, self._sources) > 0.5 for scene in self.scenes])

    @cached_property
    def wanted(self) -> list[Prompt]:
        """The prompt of each scene."""
        found = []
        for scene in self.scenes:
            digit = int(self._sources.labels[scene.row])
            found.append(Prompt(sentence(NUMBERS[digit], scene.ink, scene.ground), digit, scene.ink, scene.ground))
        return found

    @cached_property
    def seeds(self) -> list[int]:
        """The seed of each image."""
        return list(range(NOISE[self.split], NOISE[self.split] + self.count))

    def of(self, images: Tensor) -> dict[str, float]:
        """The scores of images that were generated from the prompts ``wanted`` with control images of the scenes.

        Args:
            images: uint8 [n, 3, 32, 32].

        Returns:
            ``mask_iou`` and ``edge_f1`` (1 pixel of tolerance) against the digits of the scenes, means over the images;
            ``digit_kept``, ``ink_kept``, ``ground_kept``: shares of images that match the prompt; ``kept``: share that
            matches in all three; ``score``: harmonic mean of mask IoU, edge F1 and kept.
        """
        seen = [
            mask_seen(generated, scene.ink, scene.ground)
            for generated, scene in zip(images.cpu(), self.scenes, strict=True)
        ]
        overlap = [mask_iou(there, found) for there, found in zip(self.masks, seen, strict=True)]
        edges = [edge_f1(outline(there), outline(found)) for there, found in zip(self.masks, seen, strict=True)]
        shares = {f"{name}_kept": share for name, share in follows(self._classifier, images, self.wanted).items()}
        found = {
            "mask_iou": sum(overlap) / len(overlap),
            "edge_f1": sum(edges) / len(edges),
            **shares,
            "kept": follow_all(self._classifier, images, self.wanted),
        }
        return found | {"score": balance(found["mask_iou"], found["edge_f1"], found["kept"])}

    @cached_property
    def _sources(self) -> Sources:
        return image.load_sources()

    @cached_property
    def _classifier(self) -> Classifier:
        return image.load_classifier("digit")
