"""GRPO: several answers to each prompt, those with a reward above the mean of their group get likelier (arXiv 2402.03300)."""

from __future__ import annotations

from typing import ClassVar

from trl import GRPOTrainer

from orthotune.recipes.prompt_settings import RewardSettings
from orthotune.recipes.reward_job import RewardJob
from orthotune.recipes.text_job import TextJob
from orthotune.recipes.text_run import Callbacks, Say, run_text
from orthotune.runs.record import RunRecord
from orthotune.text.generated_batches import GeneratedBatches


class GRPOSettings(RewardSettings):
    """Everything that decides a run by GRPO.

    Example:
        >>> GRPOSettings(reward="exact").num_generations
        8
    """

    recipe: ClassVar[str] = "grpo"
    trainer_config: ClassVar[str] = "trl:GRPOConfig"


class BatchedGRPOTrainer(GeneratedBatches, GRPOTrainer):  # type: ignore[misc]
    """TRL's trainer, whose checkpoints hold the texts that are still to be learned from."""


def run(settings: GRPOSettings, say: Say = print, callbacks: Callbacks = (), bar: bool = True) -> RunRecord:
    """Finetune as ``settings`` say and return the record that is also in ``run.json`` of the output.

    Args:
        settings: of the run.
        say: called with each message.
        callbacks: of the trainer, besides those of every run.
        bar: show a progress bar.

    Raises:
        OrthotuneError: as for every run of a language model; a reward that fails.

    Example:
        >>> run(GRPOSettings(steps=20, output="runs/first")).scores_after  # doctest: +SKIP
        {'held_out_reward': 0.9}
    """
    return run_text(settings, job(settings), say, callbacks, bar)


def job(settings: GRPOSettings) -> TextJob:
    """What this recipe adds to the shared run.

    Args:
        settings: of the run.
    """
    return RewardJob(settings, BatchedGRPOTrainer).job()
