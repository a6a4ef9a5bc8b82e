"""The settings of recipes whose model answers prompts itself while it is trained."""

from __future__ import annotations

import importlib.util
from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from orthotune.recipes.method_settings import Positive, SettingError
from orthotune.recipes.text_settings import LEARNING_RATES
from orthotune.recipes.trainer_settings import TrainerSettings
from orthotune.text.rewards import RewardSpec, reward_specs

RewardGiven = str | dict[str, Any] | list[str | dict[str, Any]]
# GRPO on mathematics, Llama-3.1-8B: full finetuning learned best at 7e-7, LoRA at 3e-5, OFT at 7e-6 with blocks of 128
# and at higher rates with smaller ones.
REWARD_RATES: dict[str, float] = {"oft": 2e-5, "coft": 2e-5, "lora": 3e-5, "full": 1e-6}
#: Fields of TRL's config that another setting decides.
BY_REWARD = "reward_weights"


class PromptSettings(TrainerSettings):
    """What decides a run on prompts; a recipe's settings add what is learned from the model's answers."""

    rates: ClassVar[dict[str, float]] = LEARNING_RATES
    tied: ClassVar[dict[str, str]] = {"eval_data": "data"}

    data: str = Field(
        description="File, directory, hub name, python-methods/train or arithmetic/train, with a column of prompts: "
        "texts or lists of messages. Further columns are given to rewards."
    )
    eval_data: str | None = Field(None, description="Held-out prompts; default: a part of `data`.")
    prompt_column: str = Field("prompt", description="The column with the prompts.")
    eval_prompts: Positive = Field(64, description="Held-out prompts that are answered at each measurement.")
    max_completion_length: Positive = Field(256, description="The most tokens of an answer.")
    max_dropped: Annotated[float, Field(ge=0, le=1)] = Field(
        0.5, description="Share of the rows of `data` that may be blank or too long: prompt and answer fit max_length."
    )

    @property
    def room(self) -> int:
        """The most tokens of a prompt."""
        return self.max_length - self.max_completion_length

    @property
    def template(self) -> dict[str, Any]:
        """Further arguments of the chat template."""
        return dict(self.trainer.get("chat_template_kwargs") or {})

    @model_validator(mode="after")
    def _has_room(self) -> PromptSettings:
        if self.room < 1:
            fault = f"max_completion_length={self.max_completion_length} leaves no room for a prompt in max_length"
            raise SettingError("max_completion_length", f"{fault}={self.max_length}", "Pass a larger max_length")
        return self

    @model_validator(mode="after")
    def _writes_in_one_process(self) -> PromptSettings:
        if self.distributed not in ("none", "ddp"):
            fault = f"answers are written by a complete model in each process, which distributed={self.distributed}"
            raise SettingError("distributed", f"{fault} does not have", "Choose distributed=ddp")
        return self

    @model_validator(mode="after")
    def _stops_by_what_is_measured(self) -> PromptSettings:
        by_gain = [f"stop_when.{rule}" for rule in ("gain", "patience") if rule in self.stop_when]
        for key in by_gain + (["result"] if self.result == "best" else []):
            fault = f"{key} needs a loss on known answers, and {self.recipe} learns from answers of the model itself"
            raise SettingError(key, fault, "Leave it out; stop_when.forgetting is measured")
        return self


class ReinforcementSettings(PromptSettings):
    """What decides a run of reinforcement learning: prompts, and rewards for the answers of the model."""

    rates: ClassVar[dict[str, float]] = REWARD_RATES

    reward: RewardGiven = Field(
        description="exact, number, {format: REGEX}, {length: TOKENS}, {model: FOLDER}, package.module.function or "
        "file.py:function; several as a list, each with a weight, as [exact, {length: 50, weight: 0.2}]."
    )
    num_generations: Annotated[int, Field(ge=2)] = Field(
        8, description="Answers to each prompt, which are compared with each other; divides batch_size x accumulation."
    )
    temperature: float = Field(1.0, gt=0, description="Of the answers in training; held-out answers are the likeliest.")

    @property
    def rewards(self) -> list[RewardSpec]:
        """The rewards that ``reward`` names."""
        return reward_specs(self.reward)

    @property
    def generated(self) -> int:
        """Answers that are written at the same time, from ``batch_size`` and TRL's own keys."""
        steps = self.trainer.get("steps_per_generation") or self.gradient_accumulation
        return int(self.trainer.get("generation_batch_size") or self.batch_size * steps)

    @model_validator(mode="after")
    def _rewards(self) -> ReinforcementSettings:
        reward_specs(self.reward)
        if BY_REWARD in self.trainer:
            fault = f"{BY_REWARD} is decided by reward"
            raise SettingError(f"trainer.{BY_REWARD}", fault, "Write reward=[{exact: answer, weight: 0.5}, ...]")
        return self

    @model_validator(mode="after")
    def _complete_groups(self) -> ReinforcementSettings:
        if self.generated % self.num_generations:
            fault = f"num_generations={self.num_generations} does not divide the {self.generated} answers of a step"
            larger = -(-self.batch_size // self.num_generations) * self.num_generations
            raise SettingError("num_generations", fault, f"Pass batch_size={larger}, or another num_generations")
        return self

    @model_validator(mode="after")
    def _has_vllm(self) -> ReinforcementSettings:
        if self.trainer.get("use_vllm") and importlib.util.find_spec("vllm") is None:
            fault = "use_vllm=true needs the package vllm, which is not installed"
            raise SettingError("trainer.use_vllm", fault, "Install vllm on a machine with a GPU, or leave use_vllm out")
        return self
