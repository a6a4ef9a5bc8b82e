"""Choose the strengths at which a finished run is used, on held-out texts, and write the adapter at these.

A finished adapter mostly rotates farther than its task needs: at less than its full strength it gains nearly as much
and forgets less. One strength for all layers is found on a curve; one for each kind of layer, projection, depth or
layer is trained, with everything else frozen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from orthotune import PeftModel
from orthotune.errors import RecipeError
from orthotune.files.json_file import write_json
from orthotune.files.output import new_folder, temporary_folder
from orthotune.files.run_adapter import REWOUND
from orthotune.metrics.text_loss import TokenRow
from orthotune.operations import rewind as files
from orthotune.quantized.loading_options import place
from orthotune.recipes.held_out import TextRunSettings, settings_of_run, tokenized_rows
from orthotune.recipes.settings import GENERATED
from orthotune.recipes.source_domain import LOOKED_AT
from orthotune.recipes.strength_choice import FOLDER, ChoiceSettings, Rewound, Say, choose, exact_adapter, finish_run
from orthotune.runs.directory import RunDirectory
from orthotune.runs.layer_strengths import LayerStrengths, layer_strengths
from orthotune.runs.optional_images import not_written
from orthotune.runs.quiet import quiet
from orthotune.runs.record import RunRecord
from orthotune.runs.rewinding_plot import draw_rewinding
from orthotune.text.causal_model import choose_dtype, load_model, load_tokenizer
from orthotune.text.rewinding import TextRewinding, overlap
from orthotune.text.written_texts import read_texts, write_texts

Rows = dict[str, list[TokenRow]]
#: Fewer held-out rows of a domain cannot be divided into those to choose by and those to measure on.
FEWEST = 4
#: Held-out tokens of each domain.
TOKENS = 8192
#: What the domains are called in messages.
DOMAINS = {"new": "target", "old": "source"}


class RewindSettings(ChoiceSettings):
    """What decides the rewinding of a language model.

    Example:
        >>> RewindSettings(run="runs/sft-oft").by
        'one'
    """

    run: Path = Field(description="Run directory of a finished `orthotune train sft`.")
    weight: float = Field(1.0, ge=0, allow_inf_nan=False, description="Nats of gain that a nat of forgetting is worth.")
    forgetting: float | None = Field(None, description="At most so many nats per token may be forgotten.")
    new: str | None = Field(None, description="Held-out texts of the target domain; default: those of the run.")
    old: str | None = Field(
        None, description="Texts of the source domain, or generated: texts that the base writes. Default: those of the "
        "run, generated if it named none.",
    )  # fmt: skip
    tokens: Annotated[int, Field(ge=64)] = Field(
        TOKENS, description="Held-out tokens of each domain; half of them choose the strengths, half measure them."
    )
    step_tokens: Annotated[int, Field(gt=0)] = Field(1024, description="Tokens of each domain in such a step.")


def run(settings: RewindSettings, say: Say = print, *, overwrite: bool = False) -> Rewound:
    """Choose strengths for a finished run and write what was trained at these.

    Args:
        settings: the run, and how to choose.
        say: is given one line of text at a time.
        overwrite: replace what is at the output.

    Returns:
        The record that is also in ``rewind.json``. The output holds ``adapter`` too (``model`` after full finetuning),
        and ``rewind.png``, the curve.

    Raises:
        RecipeError: no finished run of a language model there, or too few held-out texts.
        ConfigError: the adapter holds parts that have no strength.
        DataError: texts that are missing or of another form.
        OutputError: the output exists already or cannot be written.

    Example:
        >>> run(RewindSettings(run="runs/sft-oft", by="kind")).strengths  # doctest: +SKIP
        {'attention': 0.55, 'mlp': 0.85}
    """
    trained = settings_of_run(settings.run)
    out = settings.output or settings.run / FOLDER
    with new_folder(out, overwrite=overwrite, named="output") as folder:
        with quiet():
            model, layers, base = _loaded(settings.run, trained)
            tokenizer = load_tokenizer(trained.model)
            rows, notes = _rows(model, tokenizer, settings, trained, folder)
        for note in notes:
            say(note)
        halves = {half: partial(TextRewinding, model, layers, rows[half]) for half in ("choose", "measure")}
        found, strengths = choose(settings, halves, settings.step_tokens, say)
        counted = {
            domain: sum(len(row.input_ids) for half in ("choose", "measure") for row in rows[half][domain])
            for domain in DOMAINS
        }
        shared = overlap(rows["overlap"]["new"], rows["overlap"]["old"])
        found = found.model_copy(update={"notes": notes + found.notes, "tokens": counted, "overlap": shared})
        for note in found.notes[len(notes) :]:
            say(note)
        if base is None:
            files.rewind(settings.run / "adapter", strengths, folder / "adapter")
        else:
            layers.set(strengths)
            model.save_pretrained(folder / "model")
            tokenizer.save_pretrained(folder / "model")
        write_json(folder / REWOUND, found.model_dump(mode="json"))
        title, image = f"{settings.run.name}: strength after training", "rewind.png"
        if missing := not_written(lambda: draw_rewinding(found.curve, found.rows, folder / image, title), image):
            say(missing)
    return found


def finish(settings: TextRunSettings, say: Say = print) -> RunRecord:
    """Rewind a run that has just finished, as its setting ``rewind`` asks, and add the figures to its record.

    A run that was cut off here is finished by the next call. The run directory is locked meanwhile.

    Args:
        settings: of the run.
        say: called with each message.

    Returns:
        The record of the run, with ``rewound``.

    Raises:
        OutputError: another process is at work in the run directory, or another rewinding lies there.
        RecipeError: too few held-out texts.
    """
    by = "one" if settings.rewind == "auto" else settings.rewind
    directory = RunDirectory(settings.output)
    asked = RewindSettings.model_validate({"run": directory.path, "by": by, "seed": settings.seed})
    return finish_run(directory, asked, lambda: run(asked, say), say)


def _loaded(run: Path, trained: TextRunSettings) -> tuple[Any, LayerStrengths, Any]:
    """The finished model, its strengths, and its base if it was trained in full."""
    dtype = choose_dtype(trained.dtype)
    base: Any = load_model(trained.model, dtype, trained.quantization)
    base = base if trained.quantization else base.to(place())
    if trained.method == "full":
        model = load_model(str(run / "model"), dtype).to(place())
        return model, layer_strengths(model, base=base), base
    with temporary_folder() as beside:
        model = PeftModel.from_pretrained(
            base, exact_adapter(run / "adapter", trained.method, beside), is_trainable=True
        ).eval()
    return model, layer_strengths(model), None


def _rows(
    model: Any, tokenizer: Any, settings: RewindSettings, trained: TextRunSettings, folder: Path
) -> tuple[dict[str, Rows], list[str]]:
    """Held-out rows of either domain to choose by and to measure on, and what there is to say of them."""
    old = settings.old or trained.old_data or GENERATED
    asked = {"eval_data": settings.new or trained.eval_data, "old_data": "none" if old == GENERATED else old}
    found, training = tokenized_rows(
        model, tokenizer, trained.model_copy(update={**asked, "eval_tokens": settings.tokens}), LOOKED_AT
    )
    notes = []
    if old == GENERATED:
        if trained.method == "full":
            raise RecipeError("old=generated", got="a model that was trained in full", do="Name texts: old=FILE")
        length = min(trained.max_length, 256)
        count = max(2 * FEWEST, -(-settings.tokens // length))
        write_texts(model, tokenizer, folder / "old-texts.jsonl", length, settings.seed, count)
        found["old"] = read_texts(folder / "old-texts.jsonl")
        notes.append(f"source domain: {len(found['old'])} texts that the base wrote, old-texts.jsonl.")
    require_rows(found, {"new": "new (or eval_data of the run)", "old": "old"})
    halves = {domain: _halves(found[domain]) for domain in ("new", "old")}
    shared = overlap([*training, *found["new"]], found["old"])
    if shared:
        notes.append(
            f"{shared:.0%} of the old rows have a passage of 13 tokens in common with the new texts: the "
            "forgetting that is measured on these is too low."
        )
    return {
        "choose": {domain: one for domain, (one, _) in halves.items()},
        "measure": {domain: other for domain, (_, other) in halves.items()},
        "overlap": {"old": found["old"], "new": [*training, *found["new"]]},
    }, notes


def require_rows(found: Mapping[str, Sequence[TokenRow]], settings: Mapping[str, str]) -> None:
    """Refuse held-out texts that cannot be divided into those to choose by and those to measure on.

    Args:
        found: rows by domain.
        settings: domain -> the setting that names its texts, and what else the message says of it.

    Raises:
        RecipeError: too few rows of a domain.
    """
    for domain, key in settings.items():
        if len(found.get(domain, ())) < FEWEST:
            raise RecipeError(
                f"{key}: held-out texts of the {DOMAINS[domain]} domain", got=f"{len(found.get(domain, ()))} rows",
                needed=f"at least {FEWEST}: half of them choose, half measure",
                do=f"Name more texts: {key.partition(' ')[0]}=FILE",
            )  # fmt: skip


def _halves(rows: Sequence[TokenRow]) -> tuple[list[TokenRow], list[TokenRow]]:
    """The first and the second half: rows of one document stand beside each other and stay together."""
    return list(rows[: len(rows) // 2]), list(rows[len(rows) // 2 :])
