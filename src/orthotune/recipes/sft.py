"""Supervised finetuning of a language model by OFT, COFT, LoRA or in full, measured on a new and an old domain."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from orthotune.files.atomic import atomic_write
from orthotune.files.json_file import read_json, write_json
from orthotune.metrics.drift import text_drift
from orthotune.recipes.settings import WORLD, SFTSettings
from orthotune.recipes.sft_data import examples_for, kept_examples, said_of_kept, said_of_old
from orthotune.runs import adapters, engines, processes
from orthotune.runs.checkpoint_on_signal import StopOnSignal
from orthotune.runs.clipping import GradientLog
from orthotune.runs.curve import draw_curve
from orthotune.runs.directory import RunDirectory, step_of
from orthotune.runs.failed_save import kept as kept_checkpoint
from orthotune.runs.metrics_log import MetricsLog
from orthotune.runs.progress import ProgressBar
from orthotune.runs.quiet import quiet
from orthotune.runs.record import RunRecord, WeightChange, device_name, versions
from orthotune.runs.sharded_model import is_sharded
from orthotune.text import sft_trainer
from orthotune.text.causal_model import choose_dtype, load_model, load_tokenizer
from orthotune.text.diagnosis_log import DiagnosisLog
from orthotune.text.domain_loss import DomainLoss
from orthotune.text.keep_outputs import KeepOutputs
from orthotune.text.weight_pairs import weight_change
from orthotune.text.written_texts import texts_of_run
from orthotune.worlds import text as text_world

Say = Callable[[str], None]
Callbacks = Iterable[TrainerCallback]
Adapt = Callable[[Any, list[str]], Any]


def run(
    settings: SFTSettings,
    say: Say = print,
    callbacks: Callbacks = (),
    bar: bool = True,
    adapt: Adapt | None = None,
) -> RunRecord:
    """Finetune as ``settings`` say and return the record that is also in ``run.json`` of the output.

    ``adapt(model, notes)`` may put on what is trained instead of the adapter of the settings.

    The output holds ``adapter`` (or ``model`` for full finetuning), ``metrics.jsonl``, ``curve.png`` and checkpoints.
    A run that was cut off and resumed ends with the same parameters as one that was not. SIGTERM and Ctrl-C let it
    save a checkpoint first. Under a launcher every process runs this: ``settings.distributed`` says how they share the
    work; the first one speaks and writes.

    Raises:
        OutputError: the output cannot be written, or holds another run.
        TrainingError: too many steps whose loss or gradient is not finite.
        Stopped: a signal ended the run; a ``KeyboardInterrupt``.
        DataError: data that is missing, empty or of another shape.
        RecipeError: a model or an option that does not exist.

    Example:
        >>> run(SFTSettings(steps=20, output="runs/first")).gain > 0  # doctest: +SKIP
        True
    """
    processes.check_launch(settings.distributed)
    say = say if processes.is_main() else _silent
    with processes.together():
        home = RunDirectory(settings.output)
        checkpoint = processes.from_main(lambda: home.open(settings.record(), settings.resume, say))
        if finished := processes.from_main(lambda: read_json(home.record) if home.finished else None):
            say(f"{home.path} holds this run, finished.")
            return RunRecord(**finished)
        processes.require_visible(checkpoint)
        try:
            with quiet(), StopOnSignal(say) as stop:
                return _train(settings, home, checkpoint, say, callbacks, bar, stop, adapt)
        finally:
            home.drop_if_empty()


def _silent(words: str) -> None:
    """What the processes beside the main one say."""


def _train(
    settings: SFTSettings,
    home: RunDirectory,
    checkpoint: Path | None,
    say: Say,
    callbacks: Callbacks,
    bar: bool,
    stop: StopOnSignal,
    adapt: Adapt | None,
) -> RunRecord:
    began = time.monotonic()
    examples, domains = examples_for(settings)
    if to_keep := kept_examples(settings):
        domains[sft_trainer.KEPT] = to_keep
    keep: dict[str, Any] = {"weight": settings.keep, "batch": settings.keep_batch, "seed": settings.seed}
    source = str(text_world.MODEL) if settings.model == WORLD else settings.model
    dtype, full = choose_dtype(settings.dtype), settings.method == "full"
    tokenizer = load_tokenizer(source)
    # Full finetuning keeps float32 weights: an update of a bfloat16 weight is mostly rounded away.
    model = load_model(source, torch.float32 if full else dtype, settings.quantization)
    notes = said_of_old(settings) + said_of_kept(settings)
    adapter = None if adapt else _adapter(settings, model, notes)
    model = adapt(model, notes) if adapt else model
    arguments = _arguments(settings, home.checkpoints, examples.format, dtype)
    safety: dict[str, Any] = {"max_skipped": settings.max_skipped, "on_failed_save": settings.on_failed_save}
    safety |= {"stop": stop, "say": say}
    trainer = sft_trainer.build_trainer(model, tokenizer, arguments, examples, domains, adapter, **safety)
    trainer.magnitude_factor = settings.magnitude_factor
    engines.check_started(trainer, settings.distributed)
    steps = sft_trainer.planned_steps(trainer)
    trainer.args.save_steps = settings.save_every or max(1, steps // 4)
    trained, total = adapters.trainable(trainer.model)
    notes.append(f"{settings.method}: {trained:,} of {total:,} parameters are trained, {steps} steps.")
    if to_keep:
        trainer.keep = KeepOutputs(rows=sft_trainer.kept_rows(trainer), **keep)
    say("\n".join(notes))

    main = processes.is_main()
    if main:
        home.claim(settings.record())
    if settings.keep and not to_keep:
        trainer.keep = KeepOutputs(rows=processes.from_main(lambda: texts_of_run(home, checkpoint, trainer)), **keep)
    log = MetricsLog(home.metrics if main else None, step_of(checkpoint), settings.on_failed_save, say)
    progress = ProgressBar(log, settings.method, visible=bar and main)
    every = settings.eval_every or max(1, steps // 5)
    rows = sft_trainer.domain_rows(trainer, settings.eval_tokens)
    inner = (DiagnosisLog(log, every, say), GradientLog(log, say))  # before the one that writes the line
    for callback in (*inner, DomainLoss(log, rows, every), progress, *callbacks):
        trainer.add_callback(callback)
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        progress.close()
    done = trainer.state.global_step
    if stop.asked and done < steps:
        here = (home.checkpoints / f"checkpoint-{done}").is_dir()  # a full disk may have kept it from being written
        saved = f"which checkpoint-{done} holds" if here else kept_checkpoint(home.checkpoints)
        raise stop.stopped(
            f"Stopped by {stop.asked} after step {done} of {steps}, {saved}. "
            f"Go on with the same settings and resume=auto output={home.path}"
        )
    if trainer.skipped:
        notes.append(f"{len(trainer.skipped)} steps were left out: their loss or gradient was not finite.")

    if warning := log.first("clipping"):
        notes.append(warning)
    kept = "model" if full else "adapter"
    whole = trainer.whole_state()
    if main:
        with atomic_write(home.path / kept) as partial:
            trainer.model.save_pretrained(partial, state_dict=whole)
            tokenizer.save_pretrained(partial)
        draw_curve(log.lines, home.path / "curve.png", f"{settings.method}, learning rate {settings.learning_rate:g}")
    looks = main or is_sharded(trainer.model)  # a sharded model is looked at by all processes together
    before = load_model(source, torch.float32) if full and looks else None
    drift = text_drift(trainer.model, rows["old"], before) if "old" in rows and looks else None
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
        weights=weight_change(trainer.model, before) if looks else WeightChange(),
        seconds=round(time.monotonic() - began, 1),
        train_seconds=round(log.last("seconds") or 0.0, 1),
        notes=notes,
        artifacts={kept: kept, "curve": "curve.png", "metrics": "metrics.jsonl"},
    )
    if main:
        write_json(home.record, record.model_dump(mode="json"))
    return processes.from_main(lambda: record)


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
    return adapters.lora_config(targets, rank, settings.lora_alpha, settings.lora)


def _arguments(settings: SFTSettings, checkpoints: Path, data_format: str, dtype: torch.dtype) -> Any:
    length = {"max_steps": settings.steps} if settings.steps else {"num_train_epochs": settings.epochs or 1.0}
    word, engine = settings.distributed, engines.arguments_for(settings.distributed)
    arguments = sft_trainer.sft_config(
        checkpoints,
        packing=settings.packing,
        data_format=data_format,
        schedule=settings.schedule,
        per_device_train_batch_size=processes.share(settings.batch_size),
        gradient_accumulation_steps=settings.gradient_accumulation,
        gradient_checkpointing=settings.gradient_checkpointing,
        learning_rate=settings.learning_rate,
        warmup_steps=settings.warmup,
        max_grad_norm=settings.max_grad_norm,
        weight_decay=settings.weight_decay,
        max_length=settings.max_length,
        seed=settings.seed,
        save_total_limit=settings.save_total_limit,
        **({"bf16": dtype == torch.bfloat16} | length | engine),
    )
    return engines.configure(arguments, word, full=settings.method == "full")
