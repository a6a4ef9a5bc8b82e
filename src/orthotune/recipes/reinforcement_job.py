"""What the recipes of reinforcement learning share: prompts, rewards and what is measured on held-out prompts."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

from datasets import Dataset, Features, Json

from orthotune.errors import DataError, RecipeError
from orthotune.recipes.preference_job import Adapt
from orthotune.recipes.prompt_data import PromptData, prompt_data
from orthotune.recipes.prompt_settings import ReinforcementSettings
from orthotune.recipes.reference import check_reference, reference_notes
from orthotune.recipes.sft_data import source_domain_notes
from orthotune.recipes.source_domain import domain_measures, domain_rows, drift_of
from orthotune.recipes.text_job import TextJob, TrainerInputs, source_of
from orthotune.recipes.text_run import Callbacks, Say, run_text
from orthotune.recipes.trainer_settings import passed_arguments, worded
from orthotune.runs.curve import draw_scores
from orthotune.runs.record import RunRecord
from orthotune.text.causal_model import load_model, load_tokenizer
from orthotune.text.equal_rewards import EqualRewards
from orthotune.text.held_out_rewards import TOTAL, held_out_rewards
from orthotune.text.prompts import Prompts, fitting
from orthotune.text.reward_model import model_reward
from orthotune.text.rewards import Reward, make_rewards, names_of
from orthotune.text.step_log import Measure
from orthotune.text.trainer import RunTrainer, run_trainer

#: Entries of TRL's log that ``metrics.jsonl`` has, too.
ENTRIES = (
    "reward", "reward_std", "frac_reward_zero_std", "kl", "entropy", "completions/mean_length",
    "completions/clipped_ratio",
)  # fmt: skip


def run_reinforcement(
    settings: ReinforcementSettings, job: TextJob, say: Say = print, callbacks: Callbacks = (), bar: bool = True
) -> RunRecord:
    """Train as ``settings`` and ``job`` say; return the record that is also in ``run.json`` of the output.

    Args:
        settings: of the run.
        job: of :class:`ReinforcementJob`.
        say: called with each message.
        callbacks: of the trainer, besides those of every run.
        bar: show a progress bar.

    Raises:
        OrthotuneError: as for every run of a language model; a reward that fails.
    """
    with warnings.catch_warnings():
        # Equal rewards in the first step leave every layer without a gradient, which EqualRewards reports by its cause.
        warnings.filterwarnings("ignore", message=".*got no gradient in the first training step.*zero everywhere")
        return run_text(settings, job, say, callbacks, bar)


class ReinforcementJob:
    """The job of one recipe of reinforcement learning, as callables of a :class:`TextJob`.

    Args:
        settings: of the run.
        trainer: TRL's trainer, after :class:`~orthotune.text.generated_batches.GeneratedBatches` in its bases.
        adapt: puts on what is trained instead of the adapter of the settings.
    """

    def __init__(self, settings: ReinforcementSettings, trainer: Any, adapt: Adapt | None = None) -> None:
        self.settings, self.kind, self.adapt = settings, trainer, adapt
        self.rewards: list[Reward] = []
        self.held_out: Prompts | None = None
        self.rows: dict[str, Any] = {}

    def job(self) -> TextJob:
        """The job as the shared run takes it."""
        settings, source = self.settings, source_of(self.settings)
        names = [f"rewards/{name}/mean" for name in names_of(settings.rewards)] if len(settings.rewards) > 1 else []
        return TextJob(
            data=self.data,
            tokenizer=lambda: load_tokenizer(source),
            model=lambda dtype: load_model(source, dtype, settings.quantization),
            trainer=self.trainer,
            notes=[_note(settings), *source_domain_notes(settings)],
            adapt=self.adapt,
            measures=self.measures,
            entries=[*ENTRIES, *names],
            findings=lambda trainer, base: drift_of(trainer.model, base, self.rows),
            curve=partial(draw_scores, names=[TOTAL, "reward"], heading="Rewards"),
        )

    def data(self) -> PromptData:
        """The prompts, checked for the columns that the rewards need; functions of the user are imported here."""
        self.rewards = make_rewards(self.settings.rewards, model_reward)
        needs = {column: f"reward {one.name}" for one in self.rewards for column in one.columns}
        return prompt_data(self.settings, needs)

    def trainer(self, given: TrainerInputs) -> RunTrainer:
        """TRL's trainer with the adapter, the rewards, and the prompts that fit."""
        settings, data = self.settings, given.data
        _check_head(given.adapter)
        fits = (given.tokenizer, settings.room)
        learned = fitting(data.learned, *fits, settings.max_dropped, **settings.template)
        groups = settings.generated // settings.num_generations
        if len(learned.rows) < groups:
            raise DataError(
                f"data {learned.source!r}", got=f"{len(learned.rows)} prompts", needed=f"at least {groups}: the "
                f"{settings.generated} answers of a step are {settings.num_generations} to each prompt",
                do="Pass a larger num_generations, or a smaller batch_size",
            )  # fmt: skip
        self.held_out = fitting(data.held_out, *fits, **settings.template) if data.held_out else None
        given.notes.append(learned.sentence())
        if self.held_out is None:
            given.notes.append(
                "held-out prompts: none, too few rows in data to hold some out. eval_data=FILE names some."
            )
        arguments = passed_arguments(
            settings, given.checkpoints, given.dtype, num_generations=settings.num_generations,
            max_completion_length=settings.max_completion_length, temperature=settings.temperature,
            reward_weights=[one.weight for one in self.rewards],
        )  # fmt: skip
        check_reference(given, settings.trainer)
        given.notes.extend(reference_notes(settings))
        with worded(settings):
            trainer: RunTrainer = run_trainer(self.kind)(
                given.model, reward_funcs=list(self.rewards), args=arguments, train_dataset=_table(learned),
                processing_class=given.tokenizer, peft_config=given.adapter, parts=given.parts,
            )  # fmt: skip
        if "ref" in getattr(trainer.model, "peft_config", {}):
            # TRL copies an adapter that was put on before. The reference is the base, whatever is trained.
            trainer.model.delete_adapter("ref")
        trainer.add_callback(EqualRewards(given.parts.say, given.notes, trainer))
        self.rows = domain_rows(settings, given.tokenizer)
        return trainer

    def measures(self, trainer: RunTrainer) -> list[Measure]:
        """The rewards of held-out prompts, and the loss on the source domain."""
        found = domain_measures(self.rows)
        if self.held_out is not None:
            settings = self.settings
            limit = settings.max_completion_length
            found.append(held_out_rewards(trainer, self.held_out, self.rewards, limit, settings.template))
        return found


def _table(prompts: Prompts) -> Dataset:
    """Every column as JSON, so that a reward gets the values of the data: numbers, lists, objects."""
    columns = list(dict.fromkeys(column for row in prompts.rows for column in row))
    rows = [{column: row.get(column) for column in columns} for row in prompts.rows]
    return Dataset.from_list(rows, features=Features({column: Json() for column in columns}))


def _check_head(adapter: Any) -> None:
    targets = getattr(adapter, "target_modules", None) or ()
    if "lm_head" in ([targets] if isinstance(targets, str) else targets):
        got = "lm_head, which TRL reads without its adapter to compute probabilities"
        raise RecipeError("target_modules", got=got, do="Leave lm_head out")


def _note(settings: ReinforcementSettings) -> str:
    parts = [name if one.value is None else f"{name} ({one.value})"
             for name, one in zip(names_of(settings.rewards), settings.rewards, strict=True)]  # fmt: skip
    terms = [part if one.weight == 1 else f"{one.weight:g} x {part}"
             for part, one in zip(parts, settings.rewards, strict=True)]  # fmt: skip
    return f"reward: {' + '.join(terms)}; {settings.num_generations} answers to each prompt."
