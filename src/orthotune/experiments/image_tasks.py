"""The jobs that are compared on the image world: how one run is made and scored, and what its scores are called."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from orthotune.experiments.image_strength import finished
from orthotune.files.json_file import read_json
from orthotune.image.control.hint_encoder import load_hint_encoder
from orthotune.image.families.family import Family
from orthotune.recipes import control, subject
from orthotune.recipes.control import ControlSettings
from orthotune.recipes.control_scores import DrawnScores
from orthotune.recipes.image_run import ADAPTER, MODEL, run_image
from orthotune.recipes.image_settings import ImageSettings
from orthotune.recipes.subject_settings import SubjectSettings
from orthotune.runs.record import RunRecord
from orthotune.worlds.image_scores import Split, SubjectScores, base_family

Scores = dict[str, float]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Task:
    """One job on the image world.

    Args:
        title: for headings.
        settings: the class of a run's settings.
        run: makes one run, scored on the validation split; a function of a module.
        at: scores what a finished run left in its folder, on a split and at a strength.
        base: scores the model without finetuning on a split.
        shared: settings by which runs share what is costly to make, of the comparison's folder and the seed.
        learned, kept: the scores of the frontier.
        pair: the two scores that are drawn against each other.
        told: the scores that are printed.
        words: every score with what it is.
    """

    title: str
    settings: type[ImageSettings]
    run: Callable[..., RunRecord]
    at: Callable[[Path, Split, float], Scores]
    base: Callable[[Split], Scores]
    learned: str
    kept: str
    pair: tuple[str, str]
    told: tuple[str, ...]
    words: Mapping[str, str]
    shared: Callable[[Path, int], dict[str, Any]] = lambda folder, seed: {}

    @property
    def axes(self) -> dict[str, str]:
        """The plane in which a report draws the runs: columns of the comparison, and their titles."""
        names = {"learned": self.learned, "kept": self.kept}
        columns = {name: f"validation_{score}" for name, score in names.items()}
        return columns | {f"{name}_title": self.words[score] for name, score in names.items()}


# Subject.


@cache
def _subject_scores(split: Split) -> SubjectScores:
    return SubjectScores(split)  # the base's images are drawn once for all runs


@cache
def _subject_base(split: Split) -> Scores:
    return _subject_scores(split)(0, base_family())


def _subject_validation(step: int, family: Family) -> Scores:
    # Fresh adapters are the identity: before training every method is the base.
    return _subject_base("validation") if step == 0 else _subject_scores("validation")(step, family)


def _run_subject(settings: Any, say: Say = print, *, bar: bool = True) -> RunRecord:
    job = dataclasses.replace(subject.job(settings, say), scores=[_subject_validation])
    return run_image(settings, job, say, bar)


def _subject_at(run: Path, split: Split, strength: float) -> Scores:
    return _subject_scores(split)(1, finished(run, strength))


SUBJECT = Task(
    title="a subject in new contexts",
    settings=SubjectSettings,
    run=_run_subject,
    at=_subject_at,
    base=_subject_base,
    # Class images depend on the base and the seed alone.
    shared=lambda folder, seed: {"class_images": folder / f"class-images-seed{seed}"},
    learned="prompt_fidelity",
    kept="kept",
    pair=("prompt_fidelity", "subject_fidelity"),
    told=("prompt_fidelity", "subject_fidelity", "kept", "drift", "score"),
    words={
        "prompt_fidelity": "prompt fidelity",
        "subject_fidelity": "subject fidelity",
        "kept": "other prompts followed",
        "drift": "drift on other prompts",
        "diversity": "diversity",
        "nine": "nine",
        "ink": "ink",
        "ground": "ground",
        "score": "score",
    },
)


# Control.


@cache
def _control_base(split: Split) -> Scores:
    return DrawnScores(ControlSettings.model_validate({}).signal, None, split)(0, base_family())


def _run_control(settings: Any, say: Say = print, *, bar: bool = True) -> RunRecord:
    return run_image(settings, control.job(settings, say), say, bar)


def _control_at(run: Path, split: Split, strength: float) -> Scores:
    # The encoder of the control images stays whole: it is what is steered by, not what forgets.
    encoder = load_hint_encoder(run / MODEL if (run / MODEL).is_dir() else run / ADAPTER)
    signal = read_json(run / "settings.json")["signal"]
    return DrawnScores(signal, lambda: encoder, split)(1, finished(run, strength))


CONTROL = Task(
    title="shapes by control pictures",
    settings=ControlSettings,
    run=_run_control,
    at=_control_at,
    base=_control_base,
    learned="mask_iou",
    kept="kept",
    pair=("mask_iou", "edge_f1"),
    told=("mask_iou", "edge_f1", "kept", "score"),
    words={
        "mask_iou": "mask IoU",
        "edge_f1": "edge F1, 1 pixel",
        "kept": "prompts followed",
        "digit_kept": "digit",
        "ink_kept": "ink",
        "ground_kept": "ground",
        "score": "score",
    },
)

TASKS: dict[str, Task] = {"subject": SUBJECT, "control": CONTROL}
