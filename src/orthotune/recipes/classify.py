"""Classification of texts, or of pairs of texts: one class, several labels, or a number for each."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding

from orthotune.files.installed_worlds import names_built_in
from orthotune.metrics.classes import class_scores, multi_label_scores, need_scikit_learn, regression_scores
from orthotune.recipes.class_labels import PROBLEM_TYPES, Labelled, Problem, classes_of, encoded, names_in, problem_of
from orthotune.recipes.head_job import head_trainer, scores_of
from orthotune.recipes.head_settings import HeadSettings
from orthotune.recipes.labelled_data import (
    Split,
    forgetting_notes,
    listed,
    load_rows,
    require_columns,
    rows_counted,
    split,
    text_in,
)
from orthotune.recipes.text_job import TextJob, TrainerInputs, source_of
from orthotune.recipes.text_run import Callbacks, Say, run_text
from orthotune.runs.curve import draw_scores
from orthotune.runs.metrics_log import Score
from orthotune.runs.record import RunRecord
from orthotune.text.headed_model import (
    load_headed,
    load_text_tokenizer,
    most_tokens,
    outputs_of,
    read_config,
    save_with_config,
)
from orthotune.text.trainer import RunTrainer
from orthotune.worlds.text_passages import PASSAGES, passages

#: The score by which a run gains and forgets.
MAIN: dict[Problem, Score] = {
    "single": Score("accuracy"),
    "multi": Score("micro_f1"),
    "regression": Score("loss", higher_is_better=False),
}


#: A place in a table of texts.
_CELL = re.compile(r"\.(csv|tsv)\b")


class ClassifySettings(HeadSettings):
    """The settings of a classification run.

    Without a model, passages of documentation are assigned to the Python package that they are about.

    Example:
        >>> ClassifySettings(method="lora").data
        'text-world/passages'
    """

    recipe: ClassVar[str] = "classify"

    data: str = Field(
        description="File (.csv, .jsonl, .json, .parquet), directory, hub name or text-world/passages, with the "
        "columns text, label and, for pairs, text2."
    )
    problem: Literal["auto", "single", "multi", "regression"] = Field(
        "auto", description="auto: lists of labels are multi, numbers with a fraction regression, all others single."
    )
    max_length: int = Field(256, ge=2, description="Tokens per text or pair; what is longer is cut.")


def run(
    settings: ClassifySettings,
    say: Say = print,
    callbacks: Callbacks = (),
    bar: bool = True,
    adapt: Callable[[Any, list[str]], Any] | None = None,
) -> RunRecord:
    """Train as ``settings`` say and return the record that is also in ``run.json`` of the output.

    Args:
        settings: of the run.
        say: called with each message.
        callbacks: of the trainer, besides those of every run.
        bar: show a progress bar.
        adapt: puts on what is trained instead of the adapter of the settings, given the model and the notes.

    Raises:
        DataError: texts or labels that cannot be used; names the row.
        OrthotuneError: as for every run of a language model.

    Example:
        >>> run(ClassifySettings(steps=60, output="runs/first")).scores_after["accuracy"]  # doctest: +SKIP
        0.63
    """
    need_scikit_learn()
    return run_text(settings, job(settings, adapt), say, callbacks, bar)


def job(settings: ClassifySettings, adapt: Callable[[Any, list[str]], Any] | None = None) -> TextJob:
    """What this recipe adds to the shared run: labels, a head, and the scores of classes.

    Args:
        settings: of the run.
        adapt: as of :func:`run`.
    """
    source, new = source_of(settings), list[str]()
    data = split(settings, partial(_read, asked=settings.problem))
    examples = [*data.train, *(data.domains["new"] if settings.eval_data is None and "new" in data.domains else [])]
    problem = problem_of(examples, settings.problem)

    @cache
    def config() -> Any:
        found = read_config(source)
        names = names_in(examples, problem, classes_of(found))
        found.id2label, found.label2id = dict(enumerate(names)), {name: number for number, name in enumerate(names)}
        found.problem_type = PROBLEM_TYPES[problem]
        return found

    def model(dtype: torch.dtype) -> Any:
        kind = AutoModelForSequenceClassification
        made, modules = load_headed(kind, source, dtype, config(), settings.seed, settings.quantization)
        made.config.pad_token_id = load_text_tokenizer(source).pad_token_id
        new[:] = modules
        return made

    return TextJob(
        data=lambda: (data, config()),
        tokenizer=lambda: load_text_tokenizer(source),
        model=model,
        trainer=lambda given: _trainer(settings, given, problem, new),
        notes=forgetting_notes(settings),
        adapt=adapt,
        measures=lambda trainer: [scores_of(trainer.eval_dataset, partial(_scores, trainer, problem))],
        task="SEQ_CLS",
        curve=partial(draw_scores, names=[MAIN[problem].name], heading="Held-out texts"),
        score=MAIN[problem],
        save=save_with_config,
    )


def _read(source: str, asked: str) -> list[Labelled]:
    if names_built_in(source, [PASSAGES]):
        rows = passages(source)
    else:
        rows = load_rows(source)
    require_columns(rows, ["text", "label"], source)
    pairs = rows[0][1].get("text2") is not None
    found = []
    for place, row in rows:
        if (row.get("text2") is not None) != pairs:
            require_columns([(place, row)], ["text2"], source) if pairs else require_columns(
                rows[:1], ["text2"], source
            )
        texts = (text_in(place, row, "text"), *([text_in(place, row, "text2")] if pairs else []))
        found.append(Labelled(place, texts, row["label"]))
    return _with_numbers(found, asked)


def _with_numbers(examples: list[Labelled], asked: str) -> list[Labelled]:
    """The examples with numbers as labels where a table, whose cells are texts, has numbers with a fraction.

    Whole numbers stay names of classes, so that 007 and 7 remain two.
    """
    cells = [one for one in examples if _CELL.search(one.place) and isinstance(one.label, str)]
    if asked not in ("auto", "regression") or not cells or len(cells) < len(examples):
        return examples
    try:
        numbers = [float(one.label) for one in examples]
    except ValueError:
        return examples
    if asked == "auto" and all(one.label.strip().lstrip("+-").isdigit() for one in examples):
        return examples
    return [replace(one, label=number) for one, number in zip(examples, numbers, strict=True)]


def _trainer(settings: ClassifySettings, given: TrainerInputs, problem: Problem, new: Sequence[str]) -> RunTrainer:
    data: Split[Labelled]
    data, config = given.data
    names, tokens = list(config.id2label.values()), most_tokens(given.tokenizer, config, settings.max_length)
    cut = 0

    def rows(examples: Sequence[Labelled]) -> list[dict[str, Any]]:
        nonlocal cut
        encodings = given.tokenizer([list(e.inputs) if len(e.inputs) > 1 else e.inputs[0] for e in examples])[
            "input_ids"
        ]
        cut += sum(len(ids) > tokens for ids in encodings)
        made = []
        for example in examples:
            row = given.tokenizer(*example.inputs, truncation=True, max_length=tokens)
            made.append({**row, "labels": encoded(example, problem, names)})
        return made

    train, domains = rows(data.train), {name: rows(examples) for name, examples in data.domains.items()}
    what = "a number" if problem == "regression" else f"{len(names)} classes: {listed(names)}"
    given.notes.append(f"{problem}: {what}. Rows: {rows_counted(data)}.")
    if cut:
        given.notes.append(f"{cut:,} texts are longer than {tokens} tokens and were cut.")
    collate = DataCollatorWithPadding(given.tokenizer)
    return head_trainer(settings, given, train, domains, collate, new)


def _scores(trainer: RunTrainer, problem: Problem, model: Any, rows: Sequence[Any]) -> Mapping[str, float]:
    logits, labels = [], []
    for inputs, outputs in outputs_of(model, rows, trainer.data_collator, 4 * trainer.args.train_batch_size):
        logits.append(outputs.logits.float().cpu())
        labels.append(inputs["labels"].cpu())
    found, known = torch.cat(logits), torch.cat(labels)
    if problem == "regression":
        return regression_scores(found[:, 0], known)
    return multi_label_scores(found, known) if problem == "multi" else class_scores(found, known)
