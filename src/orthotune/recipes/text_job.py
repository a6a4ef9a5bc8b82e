"""What a recipe for language models adds to the shared run, and what its trainer is made from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from orthotune.files.installed_worlds import model_folder
from orthotune.operations.continue_adapter import continue_adapter
from orthotune.recipes.text_settings import WORLD, TextSettings
from orthotune.runs import adapters, engines, processes
from orthotune.runs.curve import draw_curve
from orthotune.runs.directory import RunDirectory
from orthotune.runs.metrics_log import Line, Score
from orthotune.text.added_losses import LossMaker
from orthotune.text.arguments import SCHEDULES
from orthotune.text.step_log import Measure
from orthotune.text.trainer import RunTrainer, TrainerParts
from orthotune.text.trainer_options import check_liger, check_optimizer, check_schedule, check_trackers


@dataclass(frozen=True)
class TrainerInputs:
    """What a trainer of a run is made from.

    Args:
        model: as loaded, or with what is trained where the job has ``adapt``.
        tokenizer: of the model.
        adapter: config of the adapter that the trainer puts on; None for full finetuning, and after ``adapt``.
        data: what the job's ``data`` returned.
        checkpoints: the folder of the run's checkpoints, the trainer's ``output_dir``.
        dtype: that the model computes in.
        parts: what the run adds to the trainer.
        notes: gets sentences for the start of the run, which its record keeps.
    """

    model: Any
    tokenizer: Any
    adapter: Any
    data: Any
    checkpoints: Path
    dtype: torch.dtype
    parts: TrainerParts
    notes: list[str] = field(default_factory=list)


def _no_losses(directory: RunDirectory, checkpoint: Path | None) -> Sequence[LossMaker]:
    return ()


def _no_measures(trainer: RunTrainer) -> Sequence[Measure]:
    return ()


def save_result(trainer: RunTrainer, folder: Path, state: dict[str, Any] | None) -> None:
    """Write what was trained, and the tokenizer or processor beside it.

    Args:
        trainer: of the finished run.
        folder: that is written to.
        state: parameters that were gathered from several processes; None takes those of the model.
    """
    model: Any = trainer.model
    model.save_pretrained(folder, state_dict=state)
    trainer.processing_class.save_pretrained(folder)


def _complete(model: Any) -> Any:
    return model


def _no_findings(trainer: RunTrainer, base: Any) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class TextJob:
    """What one recipe adds to :func:`orthotune.recipes.text_run.run_text`.

    Args:
        data: loads the texts, before the model; whatever ``trainer`` takes.
        tokenizer: loads the tokenizer, or another processor of the model's inputs.
        model: loads the model in a dtype.
        trainer: makes the trainer, a class of :func:`orthotune.text.trainer.run_trainer`, with its arguments
            (:func:`trainer_arguments`) and its data; it puts ``adapter`` on.
        notes: sentences for the start of the run, which its record keeps.
        adapt: puts on what is trained instead of the adapter of the settings, given the model and the notes.
        losses: what is added to the loss of the trainer, given the run directory and the checkpoint to go on from.
        measures: what measures the model before, while and after it is trained. ``new_nats`` and ``old_nats`` are the
            losses of the target and the source domain; other numbers become the scores of the record.
        ends: as ``measures``, for what takes long: measured before and after the training, not during it.
        entries: names of the trainer's own log that ``metrics.jsonl`` has, too.
        task: PEFT's task type of the adapter, which decides what is trained in full beside the adapter; None for
            models that PEFT has no class of their own for.
        findings: further fields of the record, from the trained model and, after full finetuning, its base.
        curve: draws the lines of metrics into a PNG, with a title.
        score: by which the run gains and forgets, for ``stop_when`` and ``result``; None for the losses of the domains.
        save: writes what was trained into a folder, given the trainer and parameters that were gathered.
        part: of the loaded model, the part that gets the adapter.
    """

    data: Callable[[], Any]
    tokenizer: Callable[[], Any]
    model: Callable[[torch.dtype], Any]
    trainer: Callable[[TrainerInputs], RunTrainer]
    notes: Sequence[str] = ()
    adapt: Callable[[Any, list[str]], Any] | None = None
    losses: Callable[[RunDirectory, Path | None], Sequence[LossMaker]] = _no_losses
    measures: Callable[[RunTrainer], Sequence[Measure]] = _no_measures
    ends: Callable[[RunTrainer], Sequence[Measure]] = _no_measures
    entries: Sequence[str] = ()
    task: str | None = "CAUSAL_LM"
    findings: Callable[[RunTrainer, Any], dict[str, Any]] = _no_findings
    curve: Callable[[Sequence[Line], Path, str], None] = draw_curve
    score: Score | None = None
    save: Callable[[RunTrainer, Path, dict[str, Any] | None], None] = save_result
    part: Callable[[Any], Any] = _complete


def source_of(settings: TextSettings) -> str:
    """Path or hub name of the model that ``settings`` name, which may be a word as ``text-world``."""
    return model_folder(settings.model)


def model_note(settings: TextSettings) -> str:
    """The first sentence of a run: which model it trains."""
    if settings.model == WORLD:
        return f"model: {WORLD}, the small model that comes with the package; model=PATH or model=NAME is another one."
    return f"model: {settings.model}"


def adapter_config(settings: TextSettings, model: Any, notes: list[str], task: str | None) -> Any:
    """The config of the adapter that ``settings`` ask for; None for full finetuning.

    Raises:
        RecipeError: a name in ``target_modules`` that no module of the model has.

    Args:
        settings: of the run.
        model: that the adapter is for; the rank of LoRA is chosen by its layers where the settings leave it open.
        notes: gets a sentence about that rank.
        task: PEFT's task type.
    """
    if settings.method == "full":
        return None
    targets, coft = settings.target_modules, settings.method == "coft"
    adapters.check_targets(targets, model, refuse=settings.unmatched_targets == "refuse")
    rotation = adapters.rotation_config(
        targets, block_size=settings.block_size, r=settings.r, coft=coft, eps=settings.eps,
        options=settings.rotation_options, task=task,
    )  # fmt: skip
    if settings.method != "lora":
        return rotation
    rank = settings.lora_rank
    if rank is None:
        rank, parameters, wanted = adapters.matching_rank(model, rotation)
        notes.append(f"lora_rank={rank}: {parameters:,} parameters, nearest to OFT's {wanted:,} on the same layers.")
    return adapters.lora_config(targets, rank, settings.lora_alpha, settings.lora, task)


def check_options(settings: TextSettings) -> None:
    """Refuse options of the trainer that cannot be used, before anything is loaded.

    Args:
        settings: of the run.

    Raises:
        RecipeError: an optimizer, a schedule, a tracker or kernels that are unknown, or not installed.
    """
    check_optimizer(settings.optim, settings.method, settings.optim_options)
    check_schedule(SCHEDULES.get(settings.schedule, settings.schedule), settings.schedule_options)
    check_trackers(settings.trackers)
    check_liger(settings.liger)


def continued(settings: TextSettings, job: TextJob) -> Callable[[Any, list[str]], Any] | None:
    """What puts the adapter on instead of a new one: of the job, or the adapter that the settings continue.

    Args:
        settings: of the run.
        job: of the recipe.
    """
    if job.adapt is not None or settings.adapter is None:
        return job.adapt

    def adapt(model: Any, notes: list[str]) -> Any:
        adapted, about = continue_adapter(model, settings.adapter or "")
        notes.extend(about)
        if job.task == "CAUSAL_LM":
            notes.append("Gain and forgetting count from that adapter; drift and the first samples, from the base.")
        return adapted

    return adapt


def trainer_arguments(
    make: Callable[..., Any], settings: TextSettings, checkpoints: Path, dtype: torch.dtype, **options: Any
) -> Any:
    """The arguments of a recipe's trainer, as ``settings`` say.

    Args:
        make: makes the arguments, as ``partial(run_arguments, DPOConfig)`` with
            :func:`orthotune.text.arguments.run_arguments`.
        settings: of the run.
        checkpoints: the folder of the run's checkpoints.
        dtype: that the model computes in.
        **options: fields that the recipe sets.
    """
    length = {"max_steps": settings.steps} if settings.steps else {"num_train_epochs": settings.epochs or 1.0}
    saves = {"save_steps": settings.save_every} if settings.save_every else {}
    shared: dict[str, Any] = {
        "schedule": settings.schedule,
        "lr_scheduler_kwargs": settings.schedule_options or None,
        "trackers": settings.trackers,
        "neftune_noise_alpha": settings.neftune_noise_alpha,
        "use_liger_kernel": settings.liger,
        "per_device_train_batch_size": processes.share(settings.batch_size),
        "gradient_accumulation_steps": settings.gradient_accumulation,
        "gradient_checkpointing": settings.gradient_checkpointing,
        "learning_rate": settings.learning_rate,
        "warmup_steps": settings.warmup,
        "max_grad_norm": settings.max_grad_norm,
        "weight_decay": settings.weight_decay,
        "seed": settings.seed,
        "save_total_limit": settings.save_total_limit,
        "bf16": dtype == torch.bfloat16,
    }
    shared |= check_optimizer(settings.optim, settings.method, settings.optim_options)
    engine = engines.arguments_for(settings.distributed)
    arguments = make(checkpoints, **(shared | length | saves | options | engine))
    return engines.configure(arguments, settings.distributed, full=settings.method == "full")
