"""The settings by theme, and what other trainers call them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

#: Theme -> its settings, in the order of help; what is in none of them is a recipe's own.
THEMES: dict[str, tuple[str, ...]] = {
    "Model and adapter": (
        "preset", "model", "quantization", "merge_aware", "dtype", "attention", "method", "adapter", "target_modules",
        "unmatched_targets", "transform", "variant", "factors", "block_size", "r", "eps", "rotation", "magnitude_rate",
        "block_rate", "lora_rank", "lora_alpha", "lora",
    ),
    "Data": ("data", "data_format", "eval_data", "old_data", "max_length", "packing", "loss_on", "max_dropped"),
    "Training": (
        "steps", "epochs", "batch_size", "gradient_accumulation", "gradient_checkpointing", "learning_rate", "schedule",
        "schedule_options", "warmup", "optim", "optim_options", "weight_decay", "max_grad_norm", "neftune_noise_alpha",
        "liger", "seed", "distributed",
    ),
    "Forgetting": ("keep", "keep_data", "keep_batch", "held_out", "stop_when", "result", "rewind", "answers"),
    "Measuring and logs": ("eval_every", "eval_tokens", "sample_prompts", "trackers"),
    "Output and resuming": (
        "output", "resume", "save_every", "save_total_limit", "keep_every", "max_skipped", "on_failed_save",
    ),
}  # fmt: skip

#: How alike a misspelt key and a known key are at least; below this the key may mean another thing.
ALIKE = 0.7
#: What transformers, TRL, PEFT, Axolotl, LLaMA-Factory, Unsloth and kohya call a setting -> the names here, the first
#: one that a recipe has being meant.
ALIASES: dict[str, tuple[str, ...]] = {
    "accumulation": ("gradient_accumulation",),
    "adapter_name_or_path": ("adapter",),
    "attn": ("attention",),
    "attn_implementation": ("attention",),
    "flash_attention": ("attention",),
    "flash_attn": ("attention",),
    "base_model": ("model",),
    "batch": ("batch_size",),
    "bf16": ("dtype",),
    "fp16": ("dtype",),
    "torch_dtype": ("dtype",),
    "precision": ("dtype", "mixed_precision"),
    "mixed_precision": ("dtype",),
    "dtype": ("mixed_precision",),
    "bs": ("batch_size",),
    "checkpoint": ("resume",),
    "completion_only_loss": ("loss_on",),
    "assistant_only_loss": ("loss_on",),
    "train_on_inputs": ("loss_on",),
    "context_length": ("max_length",),
    "cutoff_len": ("max_length",),
    "seq_len": ("max_length",),
    "sequence_len": ("max_length",),
    "max_seq_length": ("max_length",),
    "max_seq_len": ("max_length",),
    "dataset": ("data", "instance_images"),
    "dataset_name": ("data",),
    "datasets": ("data",),
    "train_file": ("data",),
    "train_data_dir": ("data", "instance_images"),
    "epoch": ("epochs", "steps"),
    "epochs": ("epochs", "steps"),
    "num_epochs": ("epochs", "steps"),
    "num_train_epochs": ("epochs", "steps"),
    "eval_dataset": ("eval_data",),
    "val_set": ("eval_data",),
    "validation": ("eval_data",),
    "eval_steps": ("eval_every",),
    "grad_accum": ("gradient_accumulation",),
    "grad_clip": ("max_grad_norm",),
    "gradient_clipping": ("max_grad_norm",),
    "clip": ("max_grad_norm",),
    "gradient_accumulation_steps": ("gradient_accumulation",),
    "iterations": ("steps",),
    "iters": ("steps",),
    "load_in_4bit": ("quantization",),
    "load_in_8bit": ("quantization",),
    "quantization_bit": ("quantization",),
    "lora_r": ("lora_rank",),
    "rank": ("lora_rank",),
    "alpha": ("lora_alpha",),
    "lora_target": ("target_modules",),
    "lora_target_modules": ("target_modules",),
    "target_parameters": ("target_modules",),
    "targets": ("target_modules",),
    "lr": ("learning_rate",),
    "learningrate": ("learning_rate",),
    "rate": ("learning_rate",),
    "lr_scheduler": ("schedule",),
    "lr_scheduler_type": ("schedule",),
    "scheduler": ("schedule",),
    "lr_scheduler_kwargs": ("schedule_options",),
    "max_steps": ("steps",),
    "max_train_steps": ("steps",),
    "num_steps": ("steps",),
    "micro_batch_size": ("batch_size",),
    "per_device_train_batch_size": ("batch_size",),
    "train_batch_size": ("batch_size",),
    "model_name": ("model",),
    "model_name_or_path": ("model",),
    "pretrained_model_name_or_path": ("model",),
    "neftune": ("neftune_noise_alpha",),
    "noise_alpha": ("neftune_noise_alpha",),
    "oft_block_size": ("block_size",),
    "boft_block_size": ("block_size",),
    "boft_n_butterfly_factor": ("factors",),
    "optim": ("optimizer",),
    "optimizer": ("optim",),
    "optimizer_args": ("optim_options",),
    "optim_args": ("optim_options",),
    "optimizer_type": ("optim",),
    "output_dir": ("output",),
    "out": ("output",),
    "report_to": ("trackers",),
    "logger": ("trackers",),
    "wandb": ("trackers",),
    "resume_from_checkpoint": ("resume",),
    "save_steps": ("save_every",),
    "random_seed": ("seed",),
    "use_liger_kernel": ("liger",),
    "liger_kernel": ("liger",),
    "warmup_ratio": ("warmup",),
    "warmup_steps": ("warmup",),
    "lr_warmup_steps": ("warmup",),
    "wd": ("weight_decay",),
    "unet_lr": ("learning_rate",),
    "repeats": ("steps",),
    "num_repeats": ("steps",),
    "network_dim": ("block_size",),
    "dim": ("block_size",),
    "network_alpha": ("lora_alpha",),
    "min_snr_gamma": ("min_snr",),
    "output_name": ("output",),
    "save_every_n_steps": ("save_every",),
    "instance_data_dir": ("instance_images",),
    "class_data_dir": ("class_images",),
    "ema_decay": ("ema",),
    "train_te": ("train_text_encoder",),
    "enable_bucket": ("buckets",),
    "side": ("made_for", "rotation"),
    "shuffle_caption": ("shuffle_tags",),
    "keep_tokens": ("keep_tags",),
    "caption_dropout_rate": ("caption_dropout",),
    "caption_tag_dropout_rate": ("tag_dropout",),
    "text_encoder_lr": ("text_encoder_learning_rate",),
    "timestep_sampling": ("timesteps",),
    "discrete_flow_shift": ("flow_shift",),
    "masked_training": ("loss_masks",),
    "alpha_mask": ("loss_masks",),
    "validation_split": ("held_out",),
}


def meant(key: str, known: Iterable[str]) -> str | None:
    """The setting that an unknown key most likely means: another trainer's name, or a misspelling.

    Args:
        key: as it was given.
        known: the settings of the recipe.

    Returns:
        The name; None where none is near.

    Example:
        >>> keys = ["learning_rate", "epochs", "eps", "steps"]
        >>> meant("lr", keys), meant("num_train_epochs", keys), meant("epohcs", keys), meant("colour", keys)
        ('learning_rate', 'epochs', 'epochs', None)
    """
    known = list(known)
    word = key.strip().lstrip("-").replace("-", "_").lower()
    if word in known:
        return word
    for name in ALIASES.get(word, ()):
        if name in known:
            return name
    close = difflib.get_close_matches(word, known, n=1, cutoff=ALIKE)
    theirs = [alias for alias, names in ALIASES.items() if set(names) & set(known)]
    # Names of other trainers are many: only one that is nearly the same, and nearer than a name here, is meant.
    near = difflib.get_close_matches(word, [*close, *theirs], n=1, cutoff=0.8)
    if near and near[0] not in known:
        return next(name for name in ALIASES[near[0]] if name in known)
    return close[0] if close else None


def by_theme(names: Iterable[str], own: str) -> dict[str, list[str]]:
    """Settings by theme.

    Args:
        names: the settings of a recipe.
        own: the heading of those that are in no theme.

    Returns:
        Theme -> its settings, without empty themes; the recipe's own come first.

    Example:
        >>> by_theme(["steps", "data", "colour"], "This recipe")
        {'This recipe': ['colour'], 'Data': ['data'], 'Training': ['steps']}
    """
    names = list(names)
    in_themes = {name for theme in THEMES.values() for name in theme}
    found = {own: [name for name in names if name not in in_themes]}
    found |= {theme: [name for name in listed if name in names] for theme, listed in THEMES.items()}
    return {theme: listed for theme, listed in found.items() if listed}
