"""A tiny pipeline and pictures in memory to train it on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from orthotune.image.adapter.adapters import AdapterSettings, add_adapter
from orthotune.image.data.batch import Batch
from orthotune.image.families.registry import family_of
from orthotune.image.loop.accelerator import make_accelerator
from orthotune.image.loop.loop import train
from orthotune.image.loop.options import LoopOptions
from orthotune.image.loop.trainee import Trainee
from orthotune.runs.directory import RunDirectory
from orthotune.runs.metrics_log import MetricsLog
from tests.support.tiny_pipelines import tiny_pipeline

PICTURES = 5


class Memory:
    """Five random pictures of two sizes."""

    def __init__(self, family: Any, encode: bool = True) -> None:
        generator = torch.Generator().manual_seed(1)
        self.sizes = [(16, 16), (16, 16), (16, 24), (16, 16), (16, 24)]
        self.captions = ["a sks digit", "a red digit", "a digit", "a blue digit", "a green sks digit"]
        pictures = [torch.randint(256, (1, 3, *size), dtype=torch.uint8, generator=generator) for size in self.sizes]
        self.latents = [family.encode_images(picture, generator)[0] for picture in pictures]
        self.conditions = family.encode_captions(self.captions) if encode else None
        self.asked: list[list[int]] = []

    def __len__(self) -> int:
        return len(self.sizes)

    def bucket(self, index: int) -> tuple[int, int]:
        return self.sizes[index]

    def batch(self, indices: list[int]) -> Batch:
        self.asked.append(indices)
        return Batch(
            torch.stack([self.latents[index] for index in indices]),
            [self.captions[index] for index in indices],
            {key: value[indices] for key, value in self.conditions.items()} if self.conditions else None,
            torch.ones(len(indices)),
        )


def tiny_trainee(kind: str = "sd15", **settings: Any) -> Trainee:
    """A tiny pipeline with an adapter, the same each time."""
    torch.manual_seed(0)
    family = family_of(tiny_pipeline(kind))
    add_adapter(family, AdapterSettings(**{"block_size": 4, **settings}))
    return Trainee(family)


def options(**said: Any) -> LoopOptions:
    """Six steps, a checkpoint after each two."""
    usual: dict[str, Any] = {"learning_rate": 0.01, "steps": 6, "batch_size": 2, "save_every": 2, "warmup": 0.3}
    return LoopOptions(**usual | {"schedule": "cosine", "save_total_limit": 9} | said)


def run(folder: Path, said: LoopOptions, trainee: Trainee, checkpoint: Path | None = None, **extra: Any) -> MetricsLog:
    """Train, without a word or a bar."""
    data = extra.pop("data", None) or Memory(trainee.family, encode=not trainee.text_encoders)
    return train(
        trainee, data, said, RunDirectory(folder), checkpoint, extra.pop("say", lambda words: None),
        accelerator=make_accelerator(said), bar=False, **extra,
    )  # fmt: skip
