"""The fields of a trainer's config, as keys of a recipe: which there are, which the run decides, and what they take.

A recipe on one of TRL's trainers takes every field of the trainer's config dataclass beside its own settings. The
config class is imported when a key is looked up that is no setting of the recipe, so that help does not pay for it.
"""

from __future__ import annotations

import dataclasses
import re
import typing
import warnings
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError

from orthotune.errors import nearest

#: Fields that the run decides, by the setting that does the same: key -> what to write instead.
BY_SETTING: dict[str, str] = {
    "output_dir": "output",
    "per_device_train_batch_size": "batch_size",
    "per_device_eval_batch_size": "batch_size",
    "gradient_accumulation_steps": "gradient_accumulation",
    "max_steps": "steps",
    "num_train_epochs": "epochs",
    "warmup_steps": "warmup",
    "lr_scheduler_type": "schedule",
    "lr_scheduler_kwargs": "schedule_options",
    "optim_args": "optim_options",
    "use_liger_kernel": "liger",
    "report_to": "trackers",
    "save_strategy": "save_every",
    "save_steps": "save_every",
    "eval_strategy": "eval_every",
    "eval_steps": "eval_every",
    "load_best_model_at_end": "result",
    "metric_for_best_model": "result",
    "greater_is_better": "result",
    "resume_from_checkpoint": "resume",
    "model_init_kwargs": "model",
    "bf16": "dtype",
    "fp16": "dtype",
    "deepspeed": "distributed",
    "fsdp": "distributed",
    "fsdp_config": "distributed",
    "parallelism_config": "distributed",
}
#: Fields that the run decides and no setting changes: key -> the reason.
BY_RUN: dict[str, str] = {
    **dict.fromkeys(
        ("run_name", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
        "a run stays on this machine, and writes its metrics into metrics.jsonl",
    ),
    **dict.fromkeys(
        ("push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push",
         "hub_revision"),
        "a run stays on this machine; push the folder adapter afterwards",
    ),
    **dict.fromkeys(
        ("logging_strategy", "logging_steps", "logging_first_step", "logging_nan_inf_filter"),
        "a run logs every step, so that a resumed run writes the same lines",
    ),
    **dict.fromkeys(("do_train", "do_eval", "do_predict"), "a run trains, and measures what is held out"),
    **dict.fromkeys(
        ("eval_on_start", "eval_delay", "batch_eval_metrics", "include_for_metrics"),
        "a run measures before the first step and after the last one",
    ),
    **dict.fromkeys(
        ("save_only_model", "enable_jit_checkpoint", "ignore_data_skip", "restore_callback_states_from_checkpoint"),
        "a checkpoint of a run holds all that a resumed run needs",
    ),
    **dict.fromkeys(
        ("sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps"),
        "the reference is the model before training; a checkpoint would not hold one that moves",
    ),
    "truncation_mode": "answers are cut at their end, as they are counted",
    "auto_find_batch_size": "a run has the batch size that it was given",
    "trust_remote_code": "code of a model repository is never run",
    "disable_tqdm": "a run has a progress bar of its own",
    "use_cpu": "a run takes the accelerator that is there",
    "dataloader_pin_memory": "a run pins memory where there is an accelerator",
    "remove_unused_columns": "a run hands its trainer the columns that the trainer needs",
    "disable_dropout": "a run trains without dropout, so that losses can be compared",
    "eos_token": "a run takes the end token of the tokenizer",
    "pad_token": "a run takes the padding token of the tokenizer",
    "local_rank": "a launcher numbers the processes",
}  # fmt: skip
#: Values of a field whose help lists them: "Possible values are: `'sigmoid'`, `'hinge'`."
_LISTED = re.compile(r"[Pp]ossible values are:?\s*(.*?)(?:\.\s|\.?$)", re.S)
_VALUE = re.compile(r"`'?([\w.+-]+)'?`")


@cache
def config_class(name: str) -> type[Any]:
    """The config class of a trainer.

    Args:
        name: ``module:Class``, as ``trl:DPOConfig``.

    Example:
        >>> config_class("transformers:TrainingArguments").__name__
        'TrainingArguments'
    """
    module, _, attribute = name.partition(":")
    with warnings.catch_warnings():  # TRL remarks on every import of its experimental trainers
        warnings.filterwarnings("ignore", message=".*trl.experimental.*")
        found: type[Any] = getattr(import_module(module), attribute)
    return found


@cache
def fields_of(name: str) -> Mapping[str, dataclasses.Field[Any]]:
    """The fields of a config class that can be given, by name.

    Args:
        name: ``module:Class`` of the config.

    Example:
        >>> "adam_beta1" in fields_of("transformers:TrainingArguments")
        True
    """
    return {field.name: field for field in dataclasses.fields(config_class(name)) if field.init}


def passed_keys(name: str) -> list[str]:
    """The fields of a config class that a recipe passes on.

    Args:
        name: ``module:Class`` of the config.
    """
    return [key for key in fields_of(name) if key not in BY_SETTING and key not in BY_RUN]


def fault_of(name: str, key: str, value: Any, settings: Mapping[str, Any]) -> tuple[str, str] | None:
    """What is wrong with a key that is to be passed on, and what to do; None if nothing is.

    Args:
        name: ``module:Class`` of the config.
        key: the field.
        value: that is given for it.
        settings: of the recipe, by name.

    Example:
        >>> fault_of("transformers:TrainingArguments", "max_steps", 5, {"steps": None})
        ('max_steps is decided by the run', 'Write steps')
        >>> fault_of("transformers:TrainingArguments", "adam_beta1", "high", {})[0]
        "adam_beta1='high' is no value of TrainingArguments.adam_beta1: a valid number is needed"
    """
    kind, known = config_class(name).__name__, fields_of(name)
    if key in settings:
        return f"{key} is a setting of the recipe itself", f"Write {key}=VALUE, outside of trainer"
    if key not in known:
        close = nearest(key, [*settings, *passed_keys(name)], count=1)
        do = f"Did you mean {close[0]!r}?" if close else f"Write a setting of the recipe, or a field of {kind} in TRL"
        return f"unknown key {key!r}", do
    if (setting := BY_SETTING.get(key)) is not None:
        return f"{key} is decided by the run", f"Write {setting}"
    if (reason := BY_RUN.get(key)) is not None:
        return f"{key} is decided by the run: {reason}", "Leave it out"
    return _value_fault(name, key, value)


def as_field(name: str, key: str, value: Any) -> Any:
    """``value`` as the config takes it: a single value of a field that takes a list is a list of one.

    Args:
        name: ``module:Class`` of the config.
        key: the field.
        value: that is given for it.
    """
    return [value] if _takes_list(name, key) and not isinstance(value, list) and value is not None else value


@cache
def _hints(name: str) -> dict[str, Any]:
    return typing.get_type_hints(config_class(name))


def _takes_list(name: str, key: str) -> bool:
    hint = _hints(name).get(key)
    choices = [one for one in typing.get_args(hint) or (hint,) if one is not type(None)]
    return typing.get_origin(hint) is list or (len(choices) == 1 and typing.get_origin(choices[0]) is list)


def _value_fault(name: str, key: str, value: Any) -> tuple[str, str] | None:
    field, hint = fields_of(name)[key], _hints(name)[key]
    about, written = f"{config_class(name).__name__}.{key}", f"{key}={value!r}"
    value = as_field(name, key, value)
    # Python's true is a number, and pydantic reads "yes" as true; a field says neither.
    numeric = hint in (int, float, int | None, float | None)
    if numeric and isinstance(value, bool):
        return f"{written} is no value of {about}: a number is needed", f"Write for instance {key}={field.default}"
    try:
        TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
    except ValidationError as found:
        needed = found.errors()[0]["msg"].replace("Input should be", "").split(", unable")[0].strip()
        return f"{written} is no value of {about}: {needed} is needed", "See the documentation of TRL for this field"
    except PydanticSchemaGenerationError:  # a type that no setting can have: the config itself will check it
        return None
    allowed = choices_of(field)
    for one in value if isinstance(value, list) else [value]:
        if allowed and one is not None and str(one) not in allowed:
            close = nearest(str(one), allowed, count=1)
            listing = f"Choose one of {', '.join(allowed)}"
            return (
                f"{written}: {about} has no value {one!r}",
                f"Did you mean {close[0]!r}? {listing}" if close else listing,
            )
    return None


def choices_of(field: dataclasses.Field[Any]) -> list[str]:
    """The values that a field's metadata lists, as choices or in its help; none where it lists none.

    Args:
        field: of a config class.

    Example:
        >>> choices_of(fields_of("trl:KTOConfig")["loss_type"])
        ['kto', 'apo_zero_unpaired']
    """
    if choices := field.metadata.get("choices"):
        return [str(getattr(one, "value", one)) for one in choices]
    listed = _LISTED.search(field.metadata.get("help") or "")
    return _VALUE.findall(listed.group(1)) if listed else []
