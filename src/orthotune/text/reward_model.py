"""A reward from a model: the one number that a sequence classification model gives to a prompt and its completion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

from orthotune import PeftModel
from orthotune.errors import RecipeError
from orthotune.files.installed_worlds import model_folder
from orthotune.files.json_file import read_json
from orthotune.files.run_adapter import refuse_older
from orthotune.metrics.text_loss import TokenRow
from orthotune.text.causal_model import load_model, load_tokenizer
from orthotune.text.preference_rows import tokenized
from orthotune.text.preference_scores import rewards_of

NEEDED = "a run of `orthotune train reward`, its adapter, or a sequence classification model with one label"


def model_reward(where: str) -> Callable[..., list[float]]:
    """The reward function of a reward model.

    Args:
        where: a run directory with ``adapter`` or ``model``, a folder with an adapter, or a model's folder or name.

    Raises:
        RecipeError: no such model, or a model that gives no single number.
        AdapterFileError: a run directory whose model is older than the run.

    Example:
        >>> score = model_reward("runs/reward-oft")  # doctest: +SKIP
        >>> score(prompts=["Say hello."], completions=["Hello!"])  # doctest: +SKIP
        [1.25]
    """
    kept = next((name for name in ("adapter", "model") if (Path(where) / name).is_dir()), None)
    if kept is not None:
        refuse_older(Path(where), kept)
    folder = Path(where) if kept is None else Path(where) / kept
    source = str(folder) if folder.exists() else model_folder(where)
    try:
        model, tokenizer = _loaded(source)
    except RecipeError as fault:
        raise RecipeError(f"reward model {where}", got=fault.got, needed=NEEDED, do=fault.do) from fault
    if (labels := model.config.num_labels) != 1:
        raise RecipeError(f"reward model {where}", got=f"{labels} labels", needed=NEEDED)
    # The head reads the last token that is no padding.
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    model.requires_grad_(False).eval().to(device)

    def score(prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float]:
        found = []
        for prompt, completion in zip(prompts, completions, strict=True):
            row = tokenized(tokenizer, {"prompt": prompt, "completion": completion})
            ids = row.prompt + row.answers[0]
            found.append(TokenRow(ids, ids))
        return rewards_of(model, found, tokenizer.pad_token_id)

    return score


def _loaded(source: str) -> tuple[Any, Any]:
    path, kind = Path(source) / "adapter_config.json", AutoModelForSequenceClassification
    if not path.is_file():
        model = load_model(source, torch.float32, kind=kind)
        # The head of a language model would be a random one.
        if not any("SequenceClassification" in name for name in model.config.architectures or []):
            got = f"a {', '.join(model.config.architectures or ['model of no known kind'])}"
            raise RecipeError(source, got=got)
        return model, load_tokenizer(source)
    config = read_json(path)
    if config.get("task_type") != "SEQ_CLS":
        got = f"an adapter of task {config.get('task_type')}"
        raise RecipeError(source, got=got)
    base = config["base_model_name_or_path"]
    model = PeftModel.from_pretrained(load_model(base, torch.float32, kind=kind, num_labels=1), source)
    return model, load_tokenizer(source if (Path(source) / "tokenizer_config.json").is_file() else base)
