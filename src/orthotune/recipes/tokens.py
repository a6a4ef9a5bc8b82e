"""Tags of words: names of people and places, parts of speech, or any other tag for each word of a text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from transformers import AutoModelForTokenClassification, DataCollatorForTokenClassification

from orthotune.errors import DataError
from orthotune.files.installed_worlds import names_built_in
from orthotune.metrics.classes import need_scikit_learn
from orthotune.metrics.tags import are_spans, tag_scores
from orthotune.recipes.class_labels import Labelled, classes_of
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
from orthotune.text.word_pieces import UNTAGGED, align
from orthotune.worlds.text_passages import TAGGED, tagged_words


class TokensSettings(HeadSettings):
    """The settings of a run on tags of words.

    Without a model, words of code are tagged in passages of documentation.

    Example:
        >>> TokensSettings(method="lora").data
        'text-world/code-words'
    """

    recipe: ClassVar[str] = "tokens"

    data: str = Field(
        description="File (.jsonl, .json, .parquet), directory, hub name or text-world/code-words, with the columns "
        "words and tags, two lists of the same length."
    )
    piece: Literal["first", "last"] = Field(
        "first", description="Piece of a word that is tagged: first, or last for a model that reads from left to right."
    )
    max_length: int = Field(256, ge=2, description="Tokens per text; words beyond are not tagged.")


def run(
    settings: TokensSettings,
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
        DataError: words or tags that cannot be used; names the row.
        OrthotuneError: as for every run of a language model.

    Example:
        >>> run(TokensSettings(steps=60, output="runs/first")).scores_after["accuracy"]  # doctest: +SKIP
        0.97
    """
    need_scikit_learn()
    return run_text(settings, job(settings, adapt), say, callbacks, bar)


def job(settings: TokensSettings, adapt: Callable[[Any, list[str]], Any] | None = None) -> TextJob:
    """What this recipe adds to the shared run: words, a head for each token, and scores of tags.

    Args:
        settings: of the run.
        adapt: as of :func:`run`.
    """
    source, new = source_of(settings), list[str]()
    data = split(settings, _read)
    examples = [*data.train, *(data.domains.get("new", []) if settings.eval_data is None else [])]
    score = Score("span_f1" if are_spans({tag for one in examples for tag in one.label}) else "macro_f1")

    @cache
    def config() -> Any:
        found = read_config(source)
        names = _names(examples, classes_of(found))
        found.id2label, found.label2id = dict(enumerate(names)), {name: number for number, name in enumerate(names)}
        return found

    def model(dtype: torch.dtype) -> Any:
        kind = AutoModelForTokenClassification
        made, new[:] = load_headed(kind, source, dtype, config(), settings.seed, settings.quantization)
        return made

    return TextJob(
        data=lambda: (data, config()),
        tokenizer=lambda: load_text_tokenizer(source),
        model=model,
        trainer=lambda given: _trainer(settings, given, new),
        notes=forgetting_notes(settings),
        adapt=adapt,
        measures=lambda trainer: [scores_of(trainer.eval_dataset, partial(_scores, trainer))],
        task="TOKEN_CLS",
        curve=partial(draw_scores, names=[score.name], heading="Held-out texts"),
        score=score,
        save=save_with_config,
    )


def _read(source: str) -> list[Labelled]:
    if names_built_in(source, [TAGGED]):
        rows = [(place, dict[str, Any](row)) for place, row in tagged_words(source)]
    else:
        rows = load_rows(source)
    require_columns(rows, ["words", "tags"], source)
    found = []
    for place, row in rows:
        words, tags = (_list(place, row, column) for column in ("words", "tags"))
        if len(words) != len(tags):
            raise DataError(
                place, got=f"{len(words)} words and {len(tags)} tags", needed="one tag for each word",
                do="Complete the row, or remove it",
            )  # fmt: skip
        if not all(word.strip() for word in words):
            raise DataError(f"{place}: column 'words'", got="an empty word", do="Remove the word and its tag")
        found.append(Labelled(place, words, tags))
    return found


def _list(place: str, row: Mapping[str, Any], column: str) -> list[str]:
    value = row[column]
    good = isinstance(value, list) and value and all(isinstance(one, str) or _is_number(one, column) for one in value)
    if not good:
        needed = "a list of words" if column == "words" else 'a list of tags, as ["O", "B-PER"]'
        raise DataError(f"{place}: column {column!r}", got=f"{type(value).__name__} {str(value)[:40]!r}", needed=needed)
    return [str(one) for one in value]


def _is_number(value: Any, column: str) -> bool:
    """Tags may be whole numbers, as data sets without names have them."""
    return column == "tags" and isinstance(value, int) and not isinstance(value, bool)


def _names(examples: Sequence[Labelled], known: Sequence[str]) -> list[str]:
    """The tags, sorted, or in the order of a base whose head has them all."""
    found = {tag for example in examples for tag in example.label}
    if found <= set(known):
        return list(known)
    if len(found) < 2:
        raise DataError("tags", got=f"one tag, {found.pop()!r}", needed="at least two", do="Check the column tags")
    numbers = all(name.lstrip("-").isdigit() for name in found)
    return sorted(found, key=int) if numbers else sorted(found)


def _trainer(settings: TokensSettings, given: TrainerInputs, new: Sequence[str]) -> RunTrainer:
    data: Split[Labelled]
    data, config = given.data
    numbers, tokens = dict(config.label2id), most_tokens(given.tokenizer, config, settings.max_length)
    lost = 0

    def rows(examples: Sequence[Labelled]) -> list[dict[str, Any]]:
        nonlocal lost
        made = []
        for example in examples:
            if unknown := [tag for tag in example.label if tag not in numbers]:
                raise DataError(
                    f"{example.place}: tag {unknown[0]!r}", got="a tag that data does not have",
                    needed=f"one of {listed(numbers)}", do="Correct the tag, or add examples of it to data",
                )  # fmt: skip
            row = align(
                given.tokenizer, example.inputs, [numbers[tag] for tag in example.label], tokens, settings.piece
            )
            lost += len(example.inputs) - sum(label != UNTAGGED for label in row["labels"])
            made.append(row)
        return made

    train, domains = rows(data.train), {name: rows(found) for name, found in data.domains.items()}
    given.notes.append(f"{len(numbers)} tags: {listed(numbers)}. Texts: {rows_counted(data)}.")
    if lost:
        given.notes.append(f"{lost:,} words are beyond {tokens} tokens or have no token of their own: not tagged.")
    return head_trainer(settings, given, train, domains, DataCollatorForTokenClassification(given.tokenizer), new)


def _scores(trainer: RunTrainer, model: Any, rows: Sequence[Any]) -> Mapping[str, float]:
    logits, labels, lengths = [], [], []
    for inputs, outputs in outputs_of(model, rows, trainer.data_collator, 4 * trainer.args.train_batch_size):
        tagged = inputs["labels"] != UNTAGGED
        logits.append(outputs.logits[tagged].float().cpu())
        labels.append(inputs["labels"][tagged].cpu())
        lengths += tagged.sum(-1).tolist()
    names = [trainer.model.config.id2label[number] for number in range(trainer.model.config.num_labels)]
    return tag_scores(torch.cat(logits), torch.cat(labels), lengths, names)
