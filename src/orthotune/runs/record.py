"""The record of a finished run, as written to run.json."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

import torch
from pydantic import BaseModel

LIBRARIES = ("orthotune", "torch", "transformers", "peft", "trl", "diffusers", "accelerate")


class WeightChange(BaseModel):
    """How the trained weights differ from the pretrained ones, over all adapted layers.

    Args:
        orthogonality_error: largest Frobenius norm of R Rᵀ - I over the layers; None without a rotation.
        energy_change: largest relative change of a layer's hyperspherical energy.
        angle_change: largest relative change of a layer's neuron-to-neuron cosines (Frobenius norm).
    """

    orthogonality_error: float | None = None
    energy_change: float | None = None
    angle_change: float | None = None


class RunRecord(BaseModel):
    """A finished run. Losses are nats per token; a domain that was not measured is None.

    Args:
        gain: new_before - new_after; what was learned.
        forgetting: old_after - old_before.
        drift: mean divergence of the next-token distributions on the source domain, KL(before || after).
        scores_before, scores_after: what a recipe measures beside the losses of the domains, by name; of an image model
            the scores of its images.
        data: of the data to learn from (``train``) and each measured domain: examples, tokens, those that are learned,
            examples that were cut or dropped, and blank rows.
        skipped_steps: steps that were skipped because a loss or gradient was not finite.
        seconds: from loading the model to the written adapter; train_seconds: training steps only.
        artifacts: what was written, by kind, relative to the run directory.
        planned_steps: that the run was to make, in the record of a run that a signal stopped.
        stopped_by: the rule that ended the training before its last step, with ``limit``, ``step``, ``gain`` and
            ``forgetting``, or ``finish-now`` with ``step``; None without one.
        result_step: the step whose parameters were written, where that is not the last one as a matter of course.
        rewound: what rewinding at the end chose: ``by``, ``strengths``, and ``gain`` and ``forgetting`` with these and
            ``as_trained``, on texts that nothing was chosen by.
    """

    recipe: str
    method: str
    settings: dict[str, Any]
    versions: dict[str, str]
    device: str
    trainable_parameters: int
    total_parameters: int
    steps: int
    planned_steps: int | None = None
    new_before: float | None = None
    new_after: float | None = None
    gain: float | None = None
    old_before: float | None = None
    old_after: float | None = None
    forgetting: float | None = None
    drift: float | None = None
    scores_before: dict[str, float] = {}
    scores_after: dict[str, float] = {}
    data: dict[str, dict[str, int]] = {}
    skipped_steps: int = 0
    weights: WeightChange = WeightChange()
    seconds: float
    train_seconds: float
    notes: list[str] = []
    artifacts: dict[str, str]
    stopped_by: dict[str, Any] | None = None
    result_step: int | None = None
    rewound: dict[str, Any] | None = None


def versions() -> dict[str, str]:
    """The versions that a run depends on."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def device_name() -> str:
    """The accelerator's name, or ``cpu`` with its threads."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"cpu, {torch.get_num_threads()} threads"
