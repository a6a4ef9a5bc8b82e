"""RLOO: several answers to each prompt, each compared with the mean reward of the others (arXiv 2402.14740)."""

from __future__ import annotations

from typing import ClassVar

from trl import RLOOTrainer

from orthotune.recipes.prompt_settings import RewardSettings
from orthotune.recipes.reward_job import RewardJob
from orthotune.recipes.text_job import TextJob
from orthotune.recipes.text_run import Callbacks, Say, run_text
from orthotune.runs.record import RunRecord
from orthotune.text.generated_batches import GeneratedBatches


class RLOOSettings(RewardSettings):
    """Everything that decides a run by RLOO.

    Example:
        >>> RLOOSettings(reward="exact").num_generations
        8
    """

    recipe: ClassVar[str] = "rloo"
    trainer_config: ClassVar[str] = "trl:RLOOConfig"


class BatchedRLOOTrainer(GeneratedBatches, RLOOTrainer):  # type: ignore[misc]
    """TRL's trainer, whose checkpoints hold the texts that are still to be learned from."""


def run(settings: RLOOSettings, say: Say = print, callbacks: Callbacks = (), bar: bool = True) -> RunRecord:
    """Finetune as ``settings`` say and return the record that is also in ``run.json`` of the output.

    Args:
        settings: of the run.
        say: called with each message.
        callbacks: of the trainer, besides those of every run.
        bar: show a progress bar.

    Raises:
        OrthotuneError: as for every run of a language model; a reward that fails.

    Example:
        >>> run(RLOOSettings(steps=20, output="runs/first")).scores_after  # doctest: +SKIP
        {'held_out_reward': 0.9}
    """
    return run_text(settings, job(settings), say, callbacks, bar)


def job(settings: RLOOSettings) -> TextJob:
    """What this recipe adds to the shared run.

    Args:
        settings: of the run.
    """
    return RewardJob(settings, BatchedRLOOTrainer).job()
