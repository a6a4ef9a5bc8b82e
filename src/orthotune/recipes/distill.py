"""On-policy distillation: the model writes, and learns what itself, shown more, or another model predicts there."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar, cast

from pydantic import Field, model_validator
from transformers import TrainingArguments

from orthotune.errors import DataError, RecipeError
from orthotune.recipes.method_settings import SettingError
from orthotune.recipes.preference_job import Adapt
from orthotune.recipes.prompt_data import PromptData, prompt_data
from orthotune.recipes.prompt_settings import PromptSettings, RewardGiven
from orthotune.recipes.sft_data import source_domain_notes
from orthotune.recipes.source_domain import domain_measures, domain_rows, drift_of
from orthotune.recipes.text_job import TextJob, TrainerInputs, source_of
from orthotune.recipes.text_run import Callbacks, Say, run_text
from orthotune.recipes.trainer_settings import passed_arguments
from orthotune.runs.curve import draw_scores
from orthotune.runs.data_files import Row
from orthotune.runs.record import RunRecord
from orthotune.text.causal_model import load_model, load_tokenizer
from orthotune.text.distill_trainer import DistillTrainer, PromptPair
from orthotune.text.divergences import Divergence
from orthotune.text.held_out_rewards import TOTAL, held_out_rewards
from orthotune.text.prompts import PROMPT, Prompts, fitting, prompt_ids
from orthotune.text.reward_model import model_reward
from orthotune.text.rewards import Reward, make_rewards, reward_specs
from orthotune.text.step_log import Measure
from orthotune.text.trainer import RunTrainer, run_trainer

#: What the held-out texts of the student are measured by.
DIVERGENCE = "held_out_divergence"
#: The prompt of the teacher, in the rows of the run.
TEACHER = "teacher_prompt"


class DistillSettings(PromptSettings):
    """Everything that decides a run of on-policy distillation.

    Example:
        >>> DistillSettings(divergence="forward").divergence
        'forward'
    """

    recipe: ClassVar[str] = "distill"
    trainer_config: ClassVar[str] = "transformers:TrainingArguments"

    teacher: str | None = Field(
        None, description="Path or hub name of another model with the same vocabulary; default: the model itself, its "
        "adapter switched off."
    )  # fmt: skip
    context: str | None = Field(
        None, description="A text that the teacher alone reads before every prompt: an instruction, a demonstration."
    )
    context_column: str = Field("context", description="The column with such a text for each prompt.")
    teacher_prompt_column: str = Field(
        TEACHER, description="The column with the teacher's complete prompt, instead of a context."
    )
    divergence: Divergence = Field(
        "reverse", description="What is learned at each token: reverse, KL(student || teacher); forward, KL(teacher || "
        "student); or jensen-shannon."
    )  # fmt: skip
    reward: RewardGiven | None = Field(
        None, description="Measured on held-out prompts, not learned: as the reward of `orthotune train grpo`."
    )

    @model_validator(mode="after")
    def _reward(self) -> DistillSettings:
        if self.reward is not None:
            reward_specs(self.reward)
        return self

    @model_validator(mode="after")
    def _teacher_of_adapter(self) -> DistillSettings:
        options = "lora" if self.method == "lora" else "rotation"
        bias = getattr(self, options).get("bias", "none") if self.method != "full" else "none"
        if self.teacher is None and bias != "none":
            fault = f"the teacher is the base, of which {options}.bias={bias} trains a part"
            raise SettingError(f"{options}.bias", fault, "Leave it out, or name another teacher")
        return self


def run(
    settings: DistillSettings, say: Say = print, callbacks: Callbacks = (), bar: bool = True, adapt: Adapt | None = None
) -> RunRecord:
    """Finetune as ``settings`` say and return the record that is also in ``run.json`` of the output.

    Args:
        settings: of the run.
        say: called with each message.
        callbacks: of the trainer, besides those of every run.
        bar: show a progress bar.
        adapt: puts on what is trained instead of the adapter of the settings, given the model and the notes.

    Raises:
        OrthotuneError: as for every run of a language model; a teacher of another vocabulary.

    Example:
        >>> run(DistillSettings(steps=20, output="runs/first")).scores_after  # doctest: +SKIP
        {'held_out_divergence': 0.2, 'held_out_reward': 0.8}
    """
    return run_text(settings, job(settings, adapt), say, callbacks, bar)


def job(settings: DistillSettings, adapt: Adapt | None = None) -> TextJob:
    """What this recipe adds to the shared run.

    Args:
        settings: of the run.
        adapt: puts on what is trained instead of the adapter of the settings.
    """
    return _DistillJob(settings, adapt).job()


class _DistillJob:
    """The job's callables, and what they share."""

    def __init__(self, settings: DistillSettings, adapt: Adapt | None) -> None:
        self.settings, self.adapt = settings, adapt
        self.rewards: list[Reward] = []
        self.held_out: Prompts | None = None
        self.pairs: list[PromptPair] = []
        self.rows: dict[str, Any] = {}

    def job(self) -> TextJob:
        settings, source = self.settings, source_of(self.settings)
        names = [DIVERGENCE, *([TOTAL] if settings.reward is not None else [])]
        return TextJob(
            data=self.data,
            tokenizer=lambda: load_tokenizer(source),
            model=lambda dtype: load_model(source, dtype, settings.quantization),
            trainer=self.trainer,
            notes=[_note(settings), *source_domain_notes(settings)],
            adapt=self.adapt,
            measures=self.measures,
            entries=["completions/mean_length"],
            findings=lambda trainer, base: drift_of(trainer.model, base, self.rows),
            curve=partial(draw_scores, names=names, heading="Held-out prompts"),
        )

    def data(self) -> PromptData:
        settings = self.settings
        if settings.reward is not None:
            self.rewards = make_rewards(reward_specs(settings.reward), model_reward)
        found = prompt_data(settings, {column: f"reward {one.name}" for one in self.rewards for column in one.columns})
        for prompts in (found.learned, found.held_out):
            for place, row in enumerate(prompts.rows if prompts else []):
                row[TEACHER] = _teacher_prompt(row, settings, f"{prompts.source}, prompt {place}" if prompts else "")
        return found

    def trainer(self, given: TrainerInputs) -> RunTrainer:
        settings, data, tokenizer = self.settings, given.data, given.tokenizer
        learned = self._fitting(tokenizer, data.learned, settings.max_dropped)
        self.held_out = self._fitting(tokenizer, data.held_out) if data.held_out else None
        self.pairs = self._pairs(tokenizer, self.held_out) if self.held_out else []
        given.notes.append(learned.sentence())
        if self.held_out is None:
            given.notes.append(
                "held-out prompts: none, too few rows in data to hold some out. eval_data=FILE names some."
            )
        arguments = passed_arguments(settings, given.checkpoints, given.dtype, remove_unused_columns=False)
        trainer: RunTrainer = run_trainer(DistillTrainer)(
            given.model, args=cast(TrainingArguments, arguments), train_dataset=self._pairs(tokenizer, learned),
            processing_class=tokenizer, peft_config=given.adapter, parts=given.parts,
            teacher=self._teacher(given), divergence=settings.divergence,
            max_completion_length=settings.max_completion_length,
        )  # fmt: skip
        self.rows = domain_rows(settings, tokenizer)
        return trainer

    def measures(self, trainer: Any) -> list[Measure]:
        settings, found = self.settings, domain_measures(self.rows)
        if self.held_out is not None:
            found.append(lambda model: {DIVERGENCE: trainer.held_out_divergence(model, self.pairs)})
        if self.held_out is not None and self.rewards:
            limit = settings.max_completion_length
            found.append(held_out_rewards(trainer, self.held_out, self.rewards, limit, settings.template))
        return found

    def _fitting(self, tokenizer: Any, prompts: Prompts, max_dropped: float = 1.0) -> Prompts:
        settings = self.settings
        return fitting(prompts, tokenizer, settings.room, max_dropped, (PROMPT, TEACHER), **settings.template)

    def _pairs(self, tokenizer: Any, prompts: Prompts) -> list[PromptPair]:
        columns = [
            prompt_ids(tokenizer, [row[name] for row in prompts.rows], **self.settings.template)
            for name in (PROMPT, TEACHER)
        ]
        return [PromptPair(student=student, teacher=teacher) for student, teacher in zip(*columns, strict=True)]

    def _teacher(self, given: TrainerInputs) -> Any:
        """Another model, or a frozen copy where no adapter can be switched off; None for the model itself."""
        named = self.settings.teacher
        if named is None:
            own = self.settings.method == "full"
            return load_model(source_of(self.settings), given.model.dtype) if own else None
        if load_tokenizer(named).get_vocab() != given.tokenizer.get_vocab():
            got = "a tokenizer with another vocabulary than the model's"
            raise RecipeError(
                f"teacher={named}", got=got, needed="the same tokens", do="Choose a model of the same family"
            )
        teacher = load_model(named, given.dtype)
        sizes = [one.get_output_embeddings().weight.shape[0] for one in (teacher, given.model)]
        if sizes[0] != sizes[1]:
            got = f"{sizes[0]} logits, where the model has {sizes[1]}"
            raise RecipeError(
                f"teacher={named}", got=got, needed="the same number", do="Choose a model of the same family"
            )
        return teacher


def _teacher_prompt(row: Row, settings: DistillSettings, place: str) -> Any:
    """The prompt as the teacher reads it: its own column, or the context before the student's prompt."""
    prompt = row[PROMPT]
    if (own := row.get(settings.teacher_prompt_column)) is not None:
        if isinstance(own, str) != isinstance(prompt, str) or not own:
            got, needed = f"{type(own).__name__} {str(own)[:40]!r}", "a prompt of the same kind as the student's"
            raise DataError(f"{place}: column {settings.teacher_prompt_column!r}", got=got, needed=needed)
        return own
    texts = [text for text in (settings.context, row.get(settings.context_column)) if text is not None]
    if not texts and settings.teacher is None:
        raise DataError(
            place,
            got=f"columns {', '.join(sorted(row))}, and no teacher but the model itself, which would predict the same",
            needed=f"column {settings.context_column!r} or {settings.teacher_prompt_column!r}",
            do="Add one of them, or write context='TEXT' for all prompts, or teacher=MODEL",
        )
    if bad := [text for text in texts if not isinstance(text, str)]:
        got = f"{type(bad[0]).__name__} {str(bad[0])[:40]!r}"
        raise DataError(f"{place}: column {settings.context_column!r}", got=got, needed="a text")
    if isinstance(prompt, str):
        return "".join([*texts, prompt])
    if not texts:
        return prompt
    # A system message of the prompt stays before the context.
    first = [str(prompt[0]["content"])] if prompt[0]["role"] == "system" else []
    return [{"role": "system", "content": "\n\n".join([*first, *texts])}, *prompt[len(first) :]]


def _note(settings: DistillSettings) -> str:
    itself = "the model itself" + (" before training" if settings.method == "full" else ", its adapter switched off")
    return f"teacher: {settings.teacher or itself}; divergence: {settings.divergence}."
