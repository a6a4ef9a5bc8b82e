"""What the measurements of a comparison of language models will cost, stated before its first run."""

from __future__ import annotations

import torch

from orthotune.experiments.settings import CompareSettings
from orthotune.quantized.loading_options import place
from orthotune.recipes.held_out import held_out_rows
from orthotune.recipes.settings import SFTSettings
from orthotune.recipes.text_job import source_of
from orthotune.recipes.text_run import MEASUREMENTS
from orthotune.runs.quiet import quiet
from orthotune.text.causal_model import choose_dtype, load_model, load_tokenizer
from orthotune.text.evaluation_cost import cost_sentence

FEWER = "eval_tokens=N measures fewer, eval_every=N less often, strengths=[1.0] once a run"


def forecast(settings: CompareSettings, runs: list[SFTSettings]) -> list[str]:
    """How often the held-out rows of all runs are measured, and how long this takes by the first batch of the base.

    Runs that are finished cost nothing more. Nothing is written.

    Args:
        settings: of the comparison.
        runs: the settings of its runs.

    Returns:
        One sentence for each model and pair of held-out texts among the runs; none where every run is finished.

    Raises:
        OrthotuneError: a model or data cannot be read, as the run itself would say.
    """
    found: dict[str, list[SFTSettings]] = {}
    for run in runs:
        key = (run.model, run.quantization, run.data, run.eval_data, run.old_data, run.eval_tokens, run.max_length)
        found.setdefault(repr(key), []).append(run)
    return [sentence for alike in found.values() if (sentence := _of_alike(settings, alike))]


def _of_alike(settings: CompareSettings, runs: list[SFTSettings]) -> str:
    left = [run for run in runs if not (run.output / "run.json").is_file()]
    times = sum(measurements(run) for run in left)
    if settings.strengths != [1.0]:
        again = [run for run in runs if not (run.output / "strengths.json").is_file()]
        times += len(again) * len({*settings.strengths}) + min(settings.parallel, len(again))  # each process: the base
    if not times:
        return ""
    first, processes = runs[0], "" if settings.parallel == 1 else f", in {settings.parallel} processes"
    with quiet(), torch.random.fork_rng():
        base = load_model(source_of(first), choose_dtype(first.dtype), first.quantization)
        base = base if first.quantization else base.to(place())
        rows = held_out_rows(base, load_tokenizer(source_of(first)), first)
        cost = cost_sentence(base, rows, times, fewer=FEWER)
    return f"{len(left)} of {len(runs)} runs to do{processes}; {cost}" if cost else ""


def measurements(run: SFTSettings) -> int:
    """How often a run measures its held-out rows: before the first step, and then every ``eval_every`` steps.

    Args:
        run: its settings; where ``epochs`` leave the steps open until the data are read, the usual number is counted.

    Example:
        >>> measurements(SFTSettings(steps=40, eval_every=10)), measurements(SFTSettings(epochs=2.0))
        (5, 6)
    """
    if run.steps is None:
        return 1 + MEASUREMENTS
    return 1 - (-run.steps // (run.eval_every or max(1, run.steps // MEASUREMENTS)))
