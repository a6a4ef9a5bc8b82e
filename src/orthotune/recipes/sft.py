"""Supervised finetuning of a language model by OFT, COFT, LoRA or in full, measured on a new and an old domain."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from orthotune.metrics.drift import text_drift
from orthotune.recipes.settings import WORLD, SFTSettings
from orthotune.recipes.sft_data import examples_for
from orthotune.training import adapters, sft_trainer
from orthotune.training.causal_model import choose_dtype, load_model, load_tokenizer
from orthotune.training.curve import draw_curve
from orthotune.training.diagnosis_log import DiagnosisLog
from orthotune.training.domain_loss import DomainLoss
from orthotune.training.metrics_log import MetricsLog
from orthotune.training.progress import ProgressBar
from orthotune.training.quiet import quiet
from orthotune.training.run_directory import RunDirectory, appearing, read_json, step_of, write_json
from orthotune.training.run_record import RunRecord, device_name, versions
from orthotune.training.weight_pairs import weight_change
from orthotune.worlds import text as text_world

Say = Callable[[str], None]
Callbacks = Iterable[TrainerCallback]


def run(settings: SFTSettings, say: Say = print, callbacks: Callbacks = (), bar: bool = True) -> RunRecord:
    """Finetune as ``settings`` say and return the record that is also in ``run.json`` of the output.

    The output holds ``adapter`` (or ``model`` for full finetuning), ``metrics.jsonl``, ``curve.png`` and checkpoints.
    A run that was cut off and resumed ends with the same parameters as one that was not.

    Raises:
        OutputError: the output cannot be written, or holds another run.
        DataError: data that is missing, empty or of another shape.
        RecipeError: a model or an option that does not exist.

    Example:
        >>> run(SFTSettings(steps=20, output="runs/first")).gain > 0  # doctest: +SKIP
        True
    """
    home = RunDirectory(settings.output)
    checkpoint = home.open(settings.record(), settings.resume)
    if home.finished:
        say(f"{home.path} holds this run, finished.")
        return RunRecord(**read_json(home.record))
    try:
        with quiet():
            return _train(settings, home, checkpoint, say, callbacks, bar)
    finally:
        home.drop_if_empty()


def _train(
    settings: SFTSettings, home: RunDirectory, checkpoint: Path | None, say: Say, callbacks: Callbacks, bar: bool
) -> RunRecord:
    began = time.monotonic()
    examples, domains = examples_for(settings)
    source = str(text_world.MODEL) if settings.model == WORLD else settings.model
    dtype, full = choose_dtype(settings.dtype), settings.method == "full"
    tokenizer = load_tokenizer(source)
    # Full finetuning keeps float32 weights: an update of a bfloat16 weight is mostly rounded away.
    model = load_model(source, torch.float32 if full else dtype, settings.quantization)
    notes: list[str] = []
    adapter = _adapter(settings, model, notes)
    arguments = _arguments(settings, home.checkpoints, examples.format, dtype)
    trainer = sft_trainer.build_trainer(model, tokenizer, arguments, examples, domains, adapter)
    steps = sft_trainer.planned_steps(trainer)
    trainer.args.save_steps = settings.save_every or max(1, steps // 4)
    trained, total = adapters.trainable(trainer.model)
    notes.append(f"{settings.method}: {trained:,} of {total:,} parameters are trained, {steps} steps.")
    say("\n".join(notes))

    home.claim(settings.record())
    log = MetricsLog(home.metrics, from_step=step_of(checkpoint))
    progress = ProgressBar(log, settings.method, visible=bar)
    every = settings.eval_every or max(1, steps // 5)
    rows = sft_trainer.domain_rows(trainer)
    for callback in (DomainLoss(log, rows, every), DiagnosisLog(log, every, say), progress, *callbacks):
        trainer.add_callback(callback)
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        progress.close()

    kept = "model" if full else "adapter"
    with appearing(home.path / kept) as partial:
        trainer.model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
    draw_curve(log.lines, home.path / "curve.png", f"{settings.method}, learning rate {settings.learning_rate:g}")
    before = load_model(source, torch.float32) if full else None
    drift = text_drift(trainer.model, rows["old"], before) if "old" in rows else None
    record = RunRecord(
        recipe="sft",
        method=settings.method,
        settings=settings.record(),
        versions=versions(),
        device=device_name(),
        trainable_parameters=trained,
        total_parameters=total,
        steps=steps,
        **log.outcome(),
        drift=None if drift is None else drift.kl,
        weights=weight_change(trainer.model, before),
        seconds=round(time.monotonic() - began, 1),
        train_seconds=round(log.last("seconds") or 0.0, 1),
        notes=notes,
        artifacts={kept: kept, "curve": "curve.png", "metrics": "metrics.jsonl"},
    )
    write_json(home.record, record.model_dump(mode="json"))
    return record


def _adapter(settings: SFTSettings, model: Any, notes: list[str]) -> Any:
    if settings.method == "full":
        return None
    targets, coft = settings.target_modules, settings.method == "coft"
    rotation = adapters.rotation_config(
        targets, block_size=settings.block_size, r=settings.r, coft=coft, eps=settings.eps, options=settings.rotation
    )
    if settings.method != "lora":
        return rotation
    rank = settings.lora_rank
    if rank is None:
        rank, parameters, wanted = adapters.matching_rank(model, rotation)
        notes.append(f"lora_rank={rank}: {parameters:,} parameters, nearest to OFT's {wanted:,} on the same layers.")
    return adapters.lora_config(targets, rank, settings.lora_alpha)


def _arguments(settings: SFTSettings, checkpoints: Path, data_format: str, dtype: torch.dtype) -> Any:
    length = {"max_steps": settings.steps} if settings.steps else {"num_train_epochs": settings.epochs or 1.0}
    return sft_trainer.sft_config(
        checkpoints,
        packing=settings.packing,
        data_format=data_format,
        schedule=settings.schedule,
        bf16=dtype == torch.bfloat16,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation,
        gradient_checkpointing=settings.gradient_checkpointing,
        learning_rate=settings.learning_rate,
        warmup_steps=settings.warmup,
        weight_decay=settings.weight_decay,
        max_length=settings.max_length,
        seed=settings.seed,
        save_total_limit=settings.save_total_limit,
        **length,
    )
