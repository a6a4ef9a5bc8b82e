"""A reward from a model: the one number that a sequence classification model gives to a prompt and its completion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from orthotune import PeftModel
from orthotune.errors import RecipeError
from orthotune.files.installed_worlds import model_folder
from orthotune.files.json_file import read_json
from orthotune.text.causal_model import without_dropout
from orthotune.text.rewards import text_of

NEEDED = "a run of `orthotune train reward`, its adapter, or a sequence classification model with one label"
#: Texts that are judged at the same time.
AT_ONCE = 16


def model_reward(where: str) -> Callable[..., list[float]]:
    """The reward function of a reward model.

    Args:
        where: a run directory with ``adapter`` or ``model``, a folder with an adapter, or a model's folder or name.

    Raises:
        RecipeError: no such model, or a model with another number of labels than one.

    Example:
        >>> judge = model_reward("runs/reward-oft")  # doctest: +SKIP
        >>> judge(prompts=["Say hello."], completions=["Hello!"])  # doctest: +SKIP
        [1.25]
    """
    folder = next((one for name in ("adapter", "model") if (one := Path(where) / name).is_dir()), Path(where))
    try:
        model, tokenizer = _loaded(str(folder) if folder.exists() else model_folder(where))
    except (OSError, ValueError) as fault:
        if isinstance(fault, RecipeError):
            raise
        got = str(fault).strip().splitlines()[0] if folder.exists() else "no such folder, and the hub does not give it"
        raise RecipeError(f"reward model {where}", got=got, needed=NEEDED, do="Check the path") from fault
    labels = model.config.num_labels
    if labels != 1:
        raise RecipeError(f"reward model {where}", got=f"{labels} labels", needed=NEEDED)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    model.requires_grad_(False).eval().to(device)
    without_dropout(model)

    @torch.no_grad()
    def judge(prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float]:
        found: list[float] = []
        for start in range(0, len(prompts), AT_ONCE):
            pairs = zip(prompts[start : start + AT_ONCE], completions[start : start + AT_ONCE], strict=True)
            batch = tokenizer(
                [_text(tokenizer, *pair) for pair in pairs], padding=True, padding_side="right",
                add_special_tokens=False, return_tensors="pt",
            ).to(device)  # fmt: skip
            found += model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0].tolist()
        return found

    return judge


def _loaded(source: str) -> tuple[Any, Any]:
    path = Path(source) / "adapter_config.json"
    config = read_json(path) if path.is_file() else None
    base = source if config is None else model_folder(config["base_model_name_or_path"])
    if config is None:
        model = AutoModelForSequenceClassification.from_pretrained(base, trust_remote_code=False, dtype=torch.float32)
        _require_head(model, source)
    else:
        if config.get("task_type") != "SEQ_CLS":  # another adapter has no head, and a random one would judge
            got = f"an adapter of task {config.get('task_type')}"
            raise RecipeError(f"reward model {source}", got=got, needed=NEEDED)
        model = AutoModelForSequenceClassification.from_pretrained(
            base, num_labels=1, trust_remote_code=False, dtype=torch.float32
        )
        model = PeftModel.from_pretrained(model, source)
    has_own = (Path(source) / "tokenizer_config.json").is_file()
    tokenizer = AutoTokenizer.from_pretrained(source if has_own else base, trust_remote_code=False)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    # The head reads the last token that is no padding.
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


def _require_head(model: Any, source: str) -> None:
    """Refuse a language model, whose head would be a random one."""
    kinds = model.config.architectures or []
    if not any("SequenceClassification" in kind for kind in kinds):
        raise RecipeError(f"reward model {source}", got=f"a {', '.join(kinds) or 'model of no known kind'}", needed=NEEDED)


def _text(tokenizer: Any, prompt: Any, completion: Any) -> str:
    """A prompt and its completion as TRL's reward trainer reads them."""
    if isinstance(prompt, str):
        return f"{prompt}{text_of(completion)}{tokenizer.eos_token}"
    if not tokenizer.chat_template:
        got = "a tokenizer without a chat template"
        raise RecipeError("reward model for conversations", got=got, needed="the tokenizer of a chat model")
    found: str = tokenizer.apply_chat_template([*prompt, *completion], tokenize=False)
    return found
