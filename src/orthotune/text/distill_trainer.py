"""On-policy distillation: the student writes, and learns the predictions of a teacher on what the student wrote.

The teacher is the model itself without its adapter, and reads more than the student: a hint, a demonstration
(self-distillation, Shenfeld et al. 2026, arXiv 2601.19897), or it is another model (Agarwal et al. 2023, arXiv
2306.13649).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypedDict

import torch
from accelerate.utils import set_seed
from peft import PeftConfig, get_peft_model
from torch import Tensor
from transformers import Trainer

from orthotune.metrics.decoding import continued
from orthotune.metrics.text_loss import IGNORED, TokenRow, _pad
from orthotune.runs.adapter_off import adapter_off
from orthotune.text.divergences import Divergence, divergence_of


class PromptPair(TypedDict):
    """One prompt as the student and as the teacher read it, in tokens."""

    student: list[int]
    teacher: list[int]


class DistillTrainer(Trainer):
    """Learns the predictions of a teacher on texts that the model writes at temperature 1, nothing cut off.

    Args:
        model: the student, or what ``peft_config`` is put on.
        train_dataset: the prompts.
        peft_config: of the adapter; None trains what of the model is not frozen.
        teacher: another model; None is the model with its adapter switched off.
        divergence: that is learned, the mean over the tokens of a batch.
        max_completion_length: the most tokens that the student writes.
    """

    def __init__(
        self, model: Any, *args: Any, train_dataset: Sequence[PromptPair], peft_config: PeftConfig | None = None,
        teacher: Any = None, divergence: Divergence = "reverse", max_completion_length: int = 256, **kwargs: Any,
    ) -> None:  # fmt: skip
        set_seed(kwargs["args"].seed)  # of the adapter
        if peft_config is not None:
            model = get_peft_model(model, peft_config)
        self.teacher, self.divergence, self.max_completion_length = teacher, divergence, max_completion_length
        self._metrics: dict[str, list[float]] = defaultdict(list)
        super().__init__(model, *args, train_dataset=list(train_dataset), data_collator=list, **kwargs)
        if teacher is not None:
            teacher.requires_grad_(False).eval().to(self.args.device)
        set_seed(self.args.seed, device_specific=True)  # processes write different texts

    def _prepare_inputs(self, inputs: Any) -> dict[str, Any]:
        """The prompts of a batch with the texts that the student writes now."""
        if isinstance(inputs, Mapping):
            return dict(inputs)
        student = self.accelerator.unwrap_model(self.model)
        tokenizer, prompts = self.processing_class, [pair["student"] for pair in inputs]
        written = continued(student, tokenizer, prompts, self.max_completion_length, sample=True)
        self._metrics["completions/mean_length"].append(sum(map(len, written)) / len(written))
        return {"pairs": inputs, "written": written}

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean divergence per written token, in nats."""
        return self.token_divergences(model, inputs["pairs"], inputs["written"]).mean()

    def token_divergences(self, model: Any, pairs: Sequence[PromptPair], written: Sequence[list[int]]) -> Tensor:
        """The divergence at each written token, in nats, with a gradient to the student.

        Args:
            model: the student.
            pairs: the prompts.
            written: the tokens after each of them.
        """
        device = self.args.device
        student = self.accelerator.unwrap_model(model)
        off: AbstractContextManager[None] = nullcontext() if self.teacher is not None else adapter_off(student)
        with torch.no_grad(), off:
            wanted = _logits(self.teacher or student, [pair["teacher"] for pair in pairs], written, device)
        found = _logits(model, [pair["student"] for pair in pairs], written, device)
        return divergence_of(self.divergence, found, wanted)

    def held_out_divergence(self, model: Any, pairs: Sequence[PromptPair], at_once: int = 8) -> float:
        """The mean divergence per token on the likeliest texts that the student writes, in nats.

        Args:
            model: the student.
            pairs: the held-out prompts.
            at_once: texts that are written at the same time.
        """
        total, tokens, was_training = 0.0, 0, model.training
        model.eval()
        student = self.accelerator.unwrap_model(model)
        with torch.no_grad():
            for start in range(0, len(pairs), at_once):
                some = pairs[start : start + at_once]
                prompts = [pair["student"] for pair in some]
                written = continued(student, self.processing_class, prompts, self.max_completion_length)
                found = self.token_divergences(model, some, written)
                total, tokens = total + found.double().sum().item(), tokens + found.numel()
        model.train(was_training)
        return total / tokens

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As the base class, with the mean length of what was written."""
        if "loss" in logs:
            logs = logs | {name: sum(values) / len(values) for name, values in self._metrics.items() if values}
            self._metrics.clear()
        super().log(logs, *args, **kwargs)


def _logits(model: Any, prompts: Sequence[list[int]], written: Sequence[list[int]], device: Any) -> Tensor:
    """The logits that predict the written tokens, of shape ``(written tokens, vocabulary)``."""
    pairs = zip(prompts, written, strict=True)
    rows = [TokenRow(prompt + tokens, [IGNORED] * len(prompt) + tokens) for prompt, tokens in pairs]
    ids, labels, mask = (side.to(device) for side in _pad(rows))
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    found: Tensor = logits[:, :-1][labels[:, 1:] != IGNORED]
    return found
