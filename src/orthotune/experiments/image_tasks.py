"""The comparisons on the image world: a subject, and control images; how a run is made and scored, what scores mean."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from orthotune.experiments.axes import Axes, Axis, Row
from orthotune.experiments.image_frontier import draw_all
from orthotune.experiments.image_strength import finished
from orthotune.experiments.page import write_page
from orthotune.experiments.rates import seed_means
from orthotune.experiments.settings import CompareSettings, Rates
from orthotune.experiments.task import Finished, Say, Table, Task
from orthotune.files.json_file import read_json, write_json
from orthotune.image.control.hint_encoder import load_hint_encoder
from orthotune.image.families.family import Family
from orthotune.recipes import control, subject
from orthotune.recipes.control import ControlSettings
from orthotune.recipes.control_scores import SampleScores
from orthotune.recipes.image_job import ImageJob, plan_image
from orthotune.recipes.image_run import ADAPTER, MODEL, run_image
from orthotune.recipes.image_settings import ImageSettings
from orthotune.recipes.subject_settings import SubjectSettings
from orthotune.runs.metrics_log import read_lines
from orthotune.runs.record import RunRecord
from orthotune.worlds.image_scores import Split, SubjectScores, base_family

Scores = dict[str, float]
ImageMethod = Literal["oft", "coft", "oft+magnitude", "lora", "full"]
IMAGE_METHODS: tuple[ImageMethod, ...] = ("oft", "coft", "oft+magnitude", "lora", "full")
BASE, TEST, STRENGTHS = "base-scores.json", "test-scores.json", "strengths.json"
SPLITS: tuple[Split, ...] = ("validation", "test")
#: How often runs are scored while they train: those of further seeds make the curves, the first ones need the end.
SCORED = 3


class CompareImagesSettings(CompareSettings):
    """A grid of runs of one image recipe on the image world."""

    offered: ClassVar[tuple[str, ...]] = IMAGE_METHODS

    methods: list[ImageMethod] = Field(list(IMAGE_METHODS))  # type: ignore[assignment]
    learning_rates: dict[ImageMethod, Rates] = Field(  # type: ignore[assignment]
        {}, description="Rates by method; default: 1/4, 1/2, 1, 2 and 4 times the preset's."
    )
    seeds: list[int] = Field([0, 1, 2], min_length=1)
    sweep_seeds: Annotated[int, Field(gt=0)] = Field(
        1, description="How many of the seeds run at every rate; the others run at each method's best rate only."
    )
    runs: dict[str, Any] = Field({}, description="Settings of every run, as for `orthotune train`.")

    @property
    def first_seeds(self) -> list[int]:
        """The seeds that run at every learning rate."""
        return self.seeds[: self.sweep_seeds]


class CompareSubjectSettings(CompareImagesSettings):
    """A grid of runs of `orthotune train subject`.

    Example:
        >>> CompareSubjectSettings(methods=["oft"]).first_seeds
        [0]
    """

    task: Literal["subject"] = "subject"
    output: Path = Path("runs/compare-subject")


class CompareControlSettings(CompareImagesSettings):
    """A grid of runs of `orthotune train control`.

    Example:
        >>> CompareControlSettings(methods=["oft"]).output.name
        'compare-control'
    """

    task: Literal["control"] = "control"
    output: Path = Path("runs/compare-control")


class ImageTask(Task):
    """An image recipe on the image world, by several methods.

    A task states its scores in class variables: ``heading``, for the page; ``learned`` and ``kept``, the scores that
    ``frontier.png`` shows against each other; ``pair``, two more; ``headline``, those that are printed;
    ``titles``, every score with a few words for drawings.
    """

    # Around the preset's rate: a factor of 16 in all, so that the curve bends on both sides.
    spread = (0.25, 0.5, 1.0, 2.0, 4.0)

    heading: ClassVar[str]
    learned: ClassVar[str]
    kept: ClassVar[str]
    pair: ClassVar[tuple[str, str]]
    headline: ClassVar[tuple[str, ...]]
    titles: ClassVar[Mapping[str, str]]

    @abstractmethod
    def job(self, settings: Any) -> ImageJob:
        """The job of the recipe, scored on the validation split.

        Args:
            settings: of the run.
        """

    @abstractmethod
    def scores_at(self, run: Path, split: Split, strength: float) -> Scores:
        """The scores of a finished run on a split, at a strength.

        Args:
            run: the run directory.
            split: validation or test.
            strength: 1 is as trained.
        """

    @abstractmethod
    def base_scores(self, split: Split) -> Scores:
        """The scores of the model without finetuning.

        Args:
            split: validation or test.
        """

    def check(self, run: ImageSettings) -> None:
        """The plan of the run, which nothing is generated for."""
        plan_image(run, self.job(run))

    def run(self, settings: Any, say: Say = print, *, bar: bool = True) -> RunRecord:
        """Make one run, or read back a finished one; its messages are not passed on."""
        return run_image(settings, self.job(settings), lambda _: None, bar)

    def row(self, record: RunRecord, folder: Path) -> Row:
        """Validation scores, what happened to the weights, and costs."""
        return {
            "trainable_parameters": record.trainable_parameters,
            "steps": record.steps,
            **_prefixed("validation", record.scores_after),
            **record.weights.model_dump(),
            "train_seconds": record.train_seconds,
            "seconds": record.seconds,
        }

    def measure(self, finished: Finished, say: Say = print, *, bar: bool = True) -> dict[float, Row]:
        """Gain and forgetting beside the base, and all scores.

        Gain is how much more of the task is learned than the base model knows. Forgetting is the drift of images that
        are not about the task where the task measures it, else the share of other prompts that are no longer followed.
        """
        run: Path = finished.run.output
        split: Split = finished.test_data or "validation"
        base = read_json(run.parent / BASE)[split]
        known: dict[str, Scores] = read_json(run / STRENGTHS) if (run / STRENGTHS).is_file() else {}
        rows = {}
        for strength in finished.strengths:
            name = f"{split} at {strength:g}"
            if name not in known:
                known[name] = self.scores_at(run, split, strength)
                write_json(run / STRENGTHS, known)
            scores = known[name]
            lost = scores["drift"] if "drift" in scores else base[self.kept] - scores[self.kept]
            rows[strength] = {"gain": scores[self.learned] - base[self.learned], "forgetting": lost, **scores}
        return rows

    def test_data(self, settings: Any, runs: Sequence[Any]) -> Split:
        """The test split."""
        return "test"

    def settings_of(self, method: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of a method's runs; ``oft+magnitude`` trains magnitudes, too."""
        plain, _, magnitude = method.partition("+")
        base = super().settings_of(plain, given)
        if magnitude:
            base["rotation"] = {**base.get("rotation", {}), "magnitude": True}
        if not base.get("rotation", {}).get("magnitude"):  # has no meaning then, and is given for all methods at once
            base.pop("magnitude_rate", None)
        return base

    def defaults(self, settings: Any, given: Mapping[str, Any], seed: int, *, first: bool) -> dict[str, Any]:
        """Scores at the end, of further seeds also between; samples before and after, to be looked at."""
        steps = self.runs(**given).steps  # type: ignore[attr-defined]
        return {"eval_every": -(-steps // (1 if first else SCORED)), "sample_every": steps}

    def outcome(self, record: RunRecord) -> str:
        """The scores and the seconds of a run."""
        return f": {self._printed(record.scores_after)}, {record.seconds:.0f} s"

    def base(self, folder: Path, say: Say) -> Row:
        """The scores of the model without finetuning, on both splits."""
        scores = _cached(folder / BASE, lambda: {split: self.base_scores(split) for split in SPLITS})
        say(f"no finetuning: {self._printed(scores['validation'])}")
        row: Row = {"run": "none", "method": "none", "chosen": True, "trainable_parameters": 0, "steps": 0}
        return row | _prefixed("validation", scores["validation"]) | _prefixed("test", scores["test"])

    def tested(self, run: Any, say: Say) -> Row:
        """The scores of a run on the test split."""
        scores = _cached(run.output / TEST, lambda: self.scores_at(run.output, "test", 1.0))
        say(f"test, {run.output.name}: {self._printed(scores)}")
        return _prefixed("test", scores)

    def point(self, row: Row, strength: float) -> Row:
        """What the run was; its scores are measured anew at every strength."""
        kept = ("run", "method", "learning_rate", "seed", "trainable_parameters", "steps", "train_seconds")
        return {**{key: row[key] for key in kept}, "strength": strength, "chosen": False}

    def plane(self) -> dict[str, str]:
        """Validation scores: what was learned, and what was kept."""
        names = {"learned": self.learned, "kept": self.kept}
        columns = {name: f"validation_{score}" for name, score in names.items()}
        return columns | {f"{name}_title": self.titles[score] for name, score in names.items()}

    def draw(self, rows: Sequence[Row], folder: Path) -> None:
        """Write ``frontier.png``, ``fidelity.png``, ``convergence.png`` and ``change.png``."""
        chosen = [row["run"] for row in rows if row["chosen"] and row["method"] != "none"]
        lines = {
            run: [line for line in read_lines(folder / run / "metrics.jsonl") if self.kept in line] for run in chosen
        }
        curves = {run: found for run, found in lines.items() if len(found) > 2}
        draw_all(self.titles, (self.learned, self.kept), self.pair, rows, curves, folder)

    def page(self, settings: Mapping[str, Any], rows: Sequence[Row], summary: Mapping[str, Any], folder: Path) -> None:
        """Write ``report.html`` with the tables of the test split and of all runs."""
        write_page(self.heading, self.titles, settings, rows, summary, folder)

    def table(self, rows: Sequence[Row]) -> Table:
        """One line per method: its scores on the test split at the chosen learning rate, as means over the seeds."""
        lines = []
        for method, found in seed_means(rows).items():
            chosen = next(row for row in rows if row["method"] == method and row["chosen"])
            rate = f"{chosen['learning_rate']:g}" if "learning_rate" in chosen else "-"
            scores = [f"{found[f'test_{name}'][0]:.3f}" if f"test_{name}" in found else "-" for name in self.headline]
            lines.append([method, rate, f"{chosen['trainable_parameters']:,}", *scores])
        return Table("test split, means over the seeds", ["method", "lr", "trained", *self.headline], lines)

    def _printed(self, scores: Scores) -> str:
        return ", ".join(f"{name} {scores[name]:.3f}" for name in self.headline if name in scores)


def _prefixed(split: str, scores: Scores) -> Row:
    return {f"{split}_{name}": value for name, value in scores.items()}


def _cached(path: Path, make: Any) -> dict[str, Any]:
    """The content of the file, made and written when there is none."""
    if not path.is_file():
        write_json(path, make())
    return read_json(path)


@cache
def _subject_scores(split: Split) -> SubjectScores:
    return SubjectScores(split)  # the base's images are generated once for all runs


@cache
def _subject_base(split: Split) -> Scores:
    return _subject_scores(split)(0, base_family())


def _subject_validation(step: int, family: Family) -> Scores:
    # Fresh adapters are the identity: before training every method is the base.
    return _subject_base("validation") if step == 0 else _subject_scores("validation")(step, family)


class SubjectTask(ImageTask):
    """`orthotune train subject` by several methods."""

    name = "subject"
    grid = CompareSubjectSettings
    runs = SubjectSettings
    ranking = ("validation_score", "validation_prompt_fidelity")
    axes = Axes(
        Axis("gain", "gain in prompt fidelity"), Axis("forgetting", "drift on other prompts", larger_is_better=False)
    )
    heading = "a subject in new contexts"
    learned, kept, pair = "prompt_fidelity", "kept", ("prompt_fidelity", "subject_fidelity")
    headline = ("prompt_fidelity", "subject_fidelity", "kept", "drift", "score")
    titles: ClassVar[Mapping[str, str]] = {
        "prompt_fidelity": "prompt fidelity",
        "subject_fidelity": "subject fidelity",
        "kept": "other prompts followed",
        "drift": "drift on other prompts",
        "diversity": "diversity",
        "nine": "nine",
        "ink": "ink",
        "ground": "ground",
        "score": "score",
    }

    def job(self, settings: Any) -> ImageJob:
        """The recipe's job with scores of the image world."""
        return dataclasses.replace(subject.job(settings, lambda _: None), scores=[_subject_validation])

    def scores_at(self, run: Path, split: Split, strength: float) -> Scores:
        """The scores of a finished run."""
        return _subject_scores(split)(1, finished(run, strength))

    def base_scores(self, split: Split) -> Scores:
        """The scores of the model without finetuning."""
        return _subject_base(split)

    def defaults(self, settings: Any, given: Mapping[str, Any], seed: int, *, first: bool) -> dict[str, Any]:
        """Class images, which depend on the base and the seed alone, are shared by runs that are not parallel."""
        # Processes beside each other must not write into one folder.
        shared = {"class_images": settings.output / f"class-images-seed{seed}"} if settings.parallel == 1 else {}
        return {**shared, **super().defaults(settings, given, seed, first=first)}


class ControlTask(ImageTask):
    """`orthotune train control` by several methods."""

    name = "control"
    grid = CompareControlSettings
    runs = ControlSettings
    ranking = ("validation_score", "validation_mask_iou")
    axes = Axes(
        Axis("gain", "gain in mask IoU"), Axis("forgetting", "loss of prompts followed", larger_is_better=False)
    )
    heading = "shapes by control images"
    learned, kept, pair = "mask_iou", "kept", ("mask_iou", "edge_f1")
    headline = ("mask_iou", "edge_f1", "kept", "score")
    titles: ClassVar[Mapping[str, str]] = {
        "mask_iou": "mask IoU",
        "edge_f1": "edge F1, 1 pixel",
        "kept": "prompts followed",
        "digit_kept": "digit",
        "ink_kept": "ink",
        "ground_kept": "ground",
        "score": "score",
    }

    def job(self, settings: Any) -> ImageJob:
        """The recipe's job."""
        return control.job(settings, lambda _: None)

    def scores_at(self, run: Path, split: Split, strength: float) -> Scores:
        """The scores of a finished run."""
        # The encoder of the control images keeps its strength: it steers, and does not forget.
        encoder = load_hint_encoder(run / MODEL if (run / MODEL).is_dir() else run / ADAPTER)
        signal = read_json(run / "settings.json")["signal"]
        return SampleScores(signal, lambda: encoder, split)(1, finished(run, strength))

    def base_scores(self, split: Split) -> Scores:
        """The scores of the model without finetuning, which sees no control images."""
        return _control_base(split)


@cache
def _control_base(split: Split) -> Scores:
    return SampleScores(ControlSettings.model_validate({}).signal, None, split)(0, base_family())
