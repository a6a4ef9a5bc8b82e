"""The settings of a run of ``rotation_candidates.py``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """The settings of a run: parametrization, sizes and schedule."""

    kind: str = "blocks"
    learning_rate: float = 1e-3
    block_size: int = 32
    side: str = "in"
    permuted: int = 0
    magnitude: int = 0
    scale_rate: float = 1.0
    dropout: float = 0.0
    largest_angle: float = 0.0
    factors: int = 2
    rank: int = 7
    lora_scale: float = 2.0
    width: int = 88
    directions: str = ""
    frame: str = ""
    optimizer: str = "adam"
    recentred: int = 0
    weight_decay: float = 0.0
    keep: float = 0.0
    keep_batch: int = 4
    projections: str = "all"
    schedule: str = "cosine"
    warmup: float = 0.05
    steps: int = 200
    batch_size: int = 8
    seed: int = 0
    strengths: str = "1,0.85,0.7,0.5"
