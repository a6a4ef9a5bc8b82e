"""What the recipes on preferences share: a job on data that was read and counted before the model is loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch

from orthotune.errors import RecipeError
from orthotune.recipes import rewind
from orthotune.recipes.preference_data import PreferenceData, load
from orthotune.recipes.preference_settings import PreferenceSettings
from orthotune.recipes.reference import check_reference, reference_notes
from orthotune.recipes.sft_data import source_domain_notes
from orthotune.recipes.source_domain import NEW, OLD, domain_measures, drift_of
from orthotune.recipes.text_job import TextJob, TrainerInputs, source_of
from orthotune.recipes.text_run import Callbacks, Say, run_text
from orthotune.recipes.trainer_settings import worded
from orthotune.runs.curve import draw_scores
from orthotune.runs.record import RunRecord
from orthotune.text.causal_model import load_model
from orthotune.text.preference_rows import PreferenceRow
from orthotune.text.preferences import preference_table
from orthotune.text.step_log import Measure
from orthotune.text.trainer import RunTrainer

Adapt = Callable[[Any, list[str]], Any]
#: Makes the trainer, given the inputs, the table of examples, its arguments and the reference of full finetuning.
Build = Callable[[TrainerInputs, Any, Any, Any], RunTrainer]
#: Makes the measures of held-out examples, given the trainer and their tokens.
Scores = Callable[[RunTrainer, Sequence[PreferenceRow]], Sequence[Measure]]


@dataclass(frozen=True)
class PreferenceRecipe:
    """What one recipe adds to :func:`preference_job`.

    Args:
        build: makes the trainer.
        scores: make what is measured of held-out examples.
        names: of the scores that the curve shows, each a share between 0 and 1.
        entries: names of the trainer's own log that ``metrics.jsonl`` has, too.
        task: PEFT's task type of the adapter.
        model: loads the model in a dtype, given the settings.
        reference: the loss needs the model before training beside one that is trained in full.
    """

    build: Build
    scores: Scores
    names: tuple[str, ...] = ("pair_accuracy",)
    entries: tuple[str, ...] = ()
    task: str = "CAUSAL_LM"
    model: Callable[[PreferenceSettings, torch.dtype], Any] | None = None
    reference: bool = True


def run_preferences(
    settings: PreferenceSettings,
    recipe: PreferenceRecipe,
    say: Say = print,
    callbacks: Callbacks = (),
    bar: bool = True,
    adapt: Adapt | None = None,
) -> RunRecord:
    """Train as ``settings`` say and return the record that is also in ``run.json`` of the output.

    Args:
        settings: of the run.
        recipe: what one recipe adds.
        say: called with each message.
        callbacks: of the trainer, besides those of every run.
        bar: show a progress bar.
        adapt: puts on what is trained instead of the adapter of the settings, given the model and the notes.

    Raises:
        OrthotuneError: as for every run of a language model.
    """
    record = run_text(settings, preference_job(settings, recipe, adapt), say, callbacks, bar)
    return rewind.finish(settings, say) if settings.rewind != "none" and record.rewound is None else record


def preference_job(settings: PreferenceSettings, recipe: PreferenceRecipe, adapt: Adapt | None = None) -> TextJob:
    """The job of a recipe on preferences.

    Args:
        settings: of the run.
        recipe: what one recipe adds.
        adapt: puts on what is trained instead of the adapter of the settings.
    """
    loaded = cache(partial(load, settings))
    return TextJob(
        data=lambda: _checked(settings, loaded()),
        tokenizer=lambda: loaded().tokenizer,
        model=lambda dtype: _model(settings, recipe, dtype),
        trainer=lambda given: _trainer(settings, recipe, given),
        notes=source_domain_notes(settings) if settings.predicts else [],
        adapt=adapt,
        measures=lambda trainer: [*domain_measures(loaded().domains), *_scores(recipe, trainer, loaded())],
        entries=recipe.entries,
        task=recipe.task,
        findings=lambda trainer, base: _findings(trainer, base, loaded()),
        curve=partial(draw_scores, names=recipe.names, heading="Held-out preferences"),
    )


def _model(settings: PreferenceSettings, recipe: PreferenceRecipe, dtype: torch.dtype) -> Any:
    if recipe.model is not None:
        return recipe.model(settings, dtype)
    return load_model(source_of(settings), dtype, settings.quantization)


def _trainer(settings: PreferenceSettings, recipe: PreferenceRecipe, given: TrainerInputs) -> RunTrainer:
    data: PreferenceData = given.data
    reference = None
    if recipe.reference:
        check_reference(given, settings.trainer)
        given.notes.extend(reference_notes(settings))
    if recipe.reference and settings.method == "full":
        reference = _model(settings, recipe, torch.float32)
        given.notes.append("reference: a second copy of the model as it was, which full finetuning needs beside it.")
    with worded(settings):
        trainer = recipe.build(given, preference_table(data.train), data.arguments, reference)
    if "ref" in getattr(trainer.model, "peft_config", {}):
        # TRL copies an adapter that was put on before. The reference is the base, whatever is trained.
        trainer.model.delete_adapter("ref")
    given.notes.extend(data.notes)
    return trainer


def _scores(recipe: PreferenceRecipe, trainer: RunTrainer, data: PreferenceData) -> Sequence[Measure]:
    return recipe.scores(trainer, data.held_out) if data.held_out else []


def _findings(trainer: RunTrainer, base: Any, data: PreferenceData) -> dict[str, Any]:
    counts = {name: found.record() for name, found in data.counts.items()}
    return {"data": counts} | drift_of(trainer.model, base, data.domains)


def _checked(settings: PreferenceSettings, data: PreferenceData) -> PreferenceData:
    """Refuse what needs held-out answers that there are not, before the model is loaded."""
    if settings.rewind != "none":
        named = {NEW: "eval_data"} if settings.old_data is None else {NEW: "eval_data", OLD: "old_data"}
        rewind.require_rows(data.domains, named)
    asked = [f"stop_when.{rule}" for rule in ("gain", "patience") if rule in settings.stop_when]
    asked += ["result=best"] if settings.result == "best" else []
    if asked and NEW not in data.domains:
        got = "no held-out preferences, and too few rows in data to hold some out"
        raise RecipeError(", ".join(asked), got=got, do="Name some: eval_data=FILE")
    return data
