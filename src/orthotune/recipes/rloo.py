"""RLOO: several answers to each prompt, each compared with the mean reward of the others (arXiv 2402.14740)."""

from __future__ import annotations

from typing import ClassVar

from trl import RLOOTrainer

from orthotune.recipes.preference_job import Adapt
from orthotune.recipes.prompt_settings import ReinforcementSettings
from orthotune.recipes.reinforcement_job import ReinforcementJob, run_reinforcement
from orthotune.recipes.text_job import TextJob
from orthotune.recipes.text_plan import plan_text
from orthotune.recipes.text_run import Callbacks, Say
from orthotune.runs.record import RunRecord
from orthotune.text.generated_batches import GeneratedBatches


class RLOOSettings(ReinforcementSettings):
    """Everything that decides a run by RLOO.

    Example:
        >>> RLOOSettings(reward="exact").num_generations
        8
    """

    recipe: ClassVar[str] = "rloo"
    trainer_config: ClassVar[str] = "trl:RLOOConfig"


class BatchedRLOOTrainer(GeneratedBatches, RLOOTrainer):
    """TRL's trainer, whose checkpoints hold the texts that are still to be learned from."""


def run(
    settings: RLOOSettings, say: Say = print, callbacks: Callbacks = (), bar: bool = True, adapt: Adapt | None = None
) -> RunRecord:
    """Finetune as ``settings`` say and return the record that is also in ``run.json`` of the output.

    Args:
        settings: of the run.
        say: called with each message.
        callbacks: of the trainer, besides those of every run.
        bar: show a progress bar.
        adapt: puts on what is trained instead of the adapter of the settings, given the model and the notes.

    Raises:
        OrthotuneError: as for every run of a language model; a reward that fails.

    Example:
        >>> run(RLOOSettings(steps=20, output="runs/first")).scores_after  # doctest: +SKIP
        {'held_out_reward': 0.9}
    """
    return run_reinforcement(settings, job(settings, adapt), say, callbacks, bar)


def plan(settings: RLOOSettings) -> list[str]:
    """A description of the run with the memory of its steps; nothing is loaded, trained or written.

    Keys and values of the answers while they are written, before a step, are not counted.

    Args:
        settings: of the run.

    Raises:
        RecipeError: as the run itself would.
    """
    return plan_text(settings, job(settings))


def job(settings: RLOOSettings, adapt: Adapt | None = None) -> TextJob:
    """What this recipe adds to the shared run.

    Args:
        settings: of the run.
        adapt: puts on what is trained instead of the adapter of the settings.
    """
    return ReinforcementJob(settings, BatchedRLOOTrainer, adapt).job()
