"""What a run of a language model will need, from its settings and its config: nothing is loaded, trained or written."""

from __future__ import annotations

import torch

from orthotune.recipes.text_job import TextJob, adapter_config, check_options, model_note, source_of
from orthotune.recipes.text_settings import TextSettings
from orthotune.runs import adapters, processes
from orthotune.runs.quiet import quiet
from orthotune.text.causal_model import choose_dtype
from orthotune.text.memory_estimate import adapted, empty_model, measure_memory


def plan_text(settings: TextSettings, job: TextJob, sequences: int = 1, kept: int = 0, logits: float = 0) -> list[str]:
    """A description of a run in lines to print.

    Args:
        settings: of the run.
        job: of the recipe.
        sequences: that the loss of one example reads, as 2 for a chosen and a rejected answer.
        kept: further sequences of each step whose activations are kept.
        logits: positions of a sequence whose logits the loss keeps.

    Raises:
        RecipeError: as the run itself would.
    """
    check_options(settings)
    full, dtype = settings.method == "full", choose_dtype(settings.dtype)
    notes = [*job.notes]
    with quiet():
        model = empty_model(source_of(settings), torch.float32 if full else dtype)
        if settings.adapter is None:
            model = adapted(model, adapter_config(settings, job.part(model), notes, job.task))
    first = [f"model       {model_note(settings).removeprefix('model: ')}", *(f"            {note}" for note in notes)]
    if settings.adapter is not None:
        return [*first, "memory      unknown: the shapes of the adapter that is continued are in its own file"]
    trained, total = adapters.trainable(model)
    layers = {name.rpartition(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    rows = processes.share(settings.batch_size) * sequences + kept
    length = f"{settings.steps} steps" if settings.steps else f"{settings.epochs or 1:g} epochs"
    lines = [
        *first,
        f"trained     {trained:,} of {total:,} parameters, in {len(layers)} modules, by {settings.method}",
        *([f"rates       {note}"] if (note := settings.rate_factors.note(model, settings.learning_rate)) else []),
        f"steps       {length}, each with {rows} sequences of at most {settings.max_length} tokens in memory",
    ]
    if settings.quantization is not None:
        return [*lines, "memory      unknown: how many bytes a quantized base has is known once it is loaded"]
    found = measure_memory(
        model, rows, settings.max_length, optim=settings.optim, checkpointing=settings.gradient_checkpointing,
        logits=logits, autocast=torch.bfloat16 if full and dtype == torch.bfloat16 else None,
    )  # fmt: skip
    return [*lines, *found.lines()]
