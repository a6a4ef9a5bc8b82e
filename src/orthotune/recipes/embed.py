"""Sentence embeddings by sentence-transformers: from pairs, triplets or scored pairs, measured by what is retrieved."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from orthotune.errors import DataError, RecipeError, nearest
from orthotune.files.installed_worlds import names_built_in
from orthotune.recipes.head_job import scores_of
from orthotune.recipes.head_settings import HeadSettings
from orthotune.recipes.labelled_data import (
    Split,
    forgetting_notes,
    load_rows,
    require_columns,
    rows_counted,
    split,
    text_in,
)
from orthotune.recipes.method_settings import SettingError
from orthotune.recipes.text_job import TextJob, TrainerInputs, source_of, trainer_arguments
from orthotune.recipes.text_run import Callbacks, Say, run_text
from orthotune.runs.curve import draw_scores
from orthotune.runs.metrics_log import Score
from orthotune.runs.record import RunRecord
from orthotune.text.arguments import run_arguments
from orthotune.text.encoder import (
    adapted_encoder,
    encoder_trainer,
    load_encoder,
    need_sentence_transformers,
    save_encoder,
    with_transformer,
)
from orthotune.text.trainer import RunTrainer, run_trainer
from orthotune.worlds.text_passages import PAIRS, pairs

Row = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """Columns of a table of texts to embed.

    Args:
        texts: columns of texts.
        target: column of a number; None without one.
        losses: that learn from such rows, the first one by default.
        score: by which a run gains and forgets.
    """

    texts: tuple[str, ...]
    target: str | None
    losses: tuple[str, ...]
    score: Score


RETRIEVAL, SIMILARITY = Score("mrr"), Score("spearman")
#: Losses for which the other rows of a batch are the negatives.
IN_BATCH = ("multiple-negatives", "cached-multiple-negatives")
#: Asked in this order: a triplet is a pair with one column more.
SHAPES = (
    Shape(("anchor", "positive", "negative"), None, (*IN_BATCH, "triplet"), RETRIEVAL),
    Shape(("anchor", "positive"), None, IN_BATCH, RETRIEVAL),
    Shape(("sentence1", "sentence2"), "score", ("cosent", "angle", "cosine"), SIMILARITY),
    Shape(("sentence1", "sentence2"), "label", ("contrastive", "online-contrastive"), Score("average_precision")),
)  # fmt: skip
#: Word of the setting ``loss`` -> class of sentence-transformers.
LOSSES = {
    "multiple-negatives": "MultipleNegativesRankingLoss",
    "cached-multiple-negatives": "CachedMultipleNegativesRankingLoss",
    "triplet": "TripletLoss",
    "cosent": "CoSENTLoss",
    "angle": "AnglELoss",
    "cosine": "CosineSimilarityLoss",
    "contrastive": "ContrastiveLoss",
    "online-contrastive": "OnlineContrastiveLoss",
}
LossName = Literal[
    "auto", "multiple-negatives", "cached-multiple-negatives", "triplet", "cosent", "angle", "cosine", "contrastive",
    "online-contrastive",
]  # fmt: skip


class EmbedSettings(HeadSettings):
    """The settings of a run on embeddings.

    Without a model, the text world's model learns to find the passage that follows another one.

    Example:
        >>> EmbedSettings(method="lora").data
        'text-world/pairs'
    """

    recipe: ClassVar[str] = "embed"

    model: str = Field(description="Path or hub name of a sentence encoder or of any transformer, or text-world.")
    data: str = Field(
        description="File (.csv, .jsonl, .json, .parquet), directory, hub name or text-world/pairs, with the columns "
        "anchor, positive (and negative); or sentence1, sentence2 and score or label (0 or 1)."
    )
    loss: LossName = Field("auto", description="auto: multiple-negatives, of scores cosent, of labels contrastive.")
    loss_options: dict[str, Any] = Field({}, description="Of the loss, as {scale: 20} or {margin: 0.5}.")
    max_length: int = Field(256, ge=2, description="Tokens per text; what is longer is cut.")

    @model_validator(mode="after")
    def _several(self) -> EmbedSettings:
        if self.batch_size < 2 and self.loss in ("auto", *IN_BATCH):
            fault = "the other rows of a batch are the negatives, and batch_size=1 has none"
            raise SettingError("batch_size", fault, "Choose batch_size=2 or more")
        return self


def run(
    settings: EmbedSettings,
    say: Say = print,
    callbacks: Callbacks = (),
    bar: bool = True,
    adapt: Callable[[Any, list[str]], Any] | None = None,
) -> RunRecord:
    """Train as ``settings`` say and return the record that is also in ``run.json`` of the output.

    The folder ``adapter`` of the output is one that ``SentenceTransformer(FOLDER)`` loads.

    Args:
        settings: of the run.
        say: called with each message.
        callbacks: of the trainer, besides those of every run.
        bar: show a progress bar.
        adapt: puts on what is trained instead of the adapter of the settings, given the model and the notes.

    Raises:
        DataError: texts or scores that cannot be used; names the row.
        OrthotuneError: as for every run of a language model.

    Example:
        >>> run(EmbedSettings(steps=60, output="runs/first")).scores_after["mrr"]  # doctest: +SKIP
        0.41
    """
    need_sentence_transformers()
    return run_text(settings, job(settings, adapt), say, callbacks, bar)


def job(settings: EmbedSettings, adapt: Callable[[Any, list[str]], Any] | None = None) -> TextJob:
    """What this recipe adds to the shared run: texts, a loss by their columns, and retrieval or similarity.

    Args:
        settings: of the run.
        adapt: as of :func:`run`.
    """
    source = source_of(settings)
    shape = _shape(settings.data)
    loss = _loss_name(settings, shape)
    data = split(settings, partial(_read, shape=shape))
    if not data.train:
        raise DataError(f"data {settings.data!r}", got="no rows to learn from", do="Pass a smaller held_out")
    for domain, rows in data.domains.items():
        if shape.target and len({row[shape.target] for row in rows}) < 2:
            raise DataError(
                f"held-out rows of the {domain} domain", got=f"{len(rows)} rows with one value of {shape.target}",
                needed="at least two different ones, to see whether similarities follow them", do="Name more rows",
            )  # fmt: skip
    return TextJob(
        data=lambda: data,
        tokenizer=lambda: None,  # the encoder brings it
        model=lambda dtype: load_encoder(source, dtype, settings.max_length, settings.quantization),
        trainer=lambda given: _trainer(settings, given, loss),
        notes=[f"embed: {loss} of {', '.join(shape.texts)}.", *forgetting_notes(settings)],
        adapt=(lambda model, notes: with_transformer(model, adapt(model[0].model, notes))) if adapt else None,
        measures=lambda trainer: [scores_of(data.domains, partial(_scores, shape))],
        task="FEATURE_EXTRACTION",
        curve=partial(draw_scores, names=[shape.score.name], heading="Held-out texts"),
        score=shape.score,
        save=save_encoder,
        part=lambda model: model[0].model,
    )


def _rows(source: str) -> list[tuple[str, Row]]:
    if names_built_in(source, [PAIRS]):
        return [(place, dict(row)) for place, row in pairs(source)]
    return load_rows(source)


def _shape(source: str) -> Shape:
    place, row = _rows(source)[0]
    for shape in SHAPES:
        if all(row.get(column) is not None for column in (*shape.texts, *([shape.target] if shape.target else []))):
            return shape
    needed = " or ".join(", ".join([*shape.texts, *([shape.target] if shape.target else [])]) for shape in SHAPES)
    raise DataError(place, got=f"columns {', '.join(map(str, row))}", needed=needed, do="Rename the columns")


def _loss_name(settings: EmbedSettings, shape: Shape) -> str:
    name = shape.losses[0] if settings.loss == "auto" else settings.loss
    if name not in shape.losses:
        raise RecipeError(
            f"loss={name}", got=f"rows of {', '.join(shape.texts)}{f', {shape.target}' if shape.target else ''}",
            needed=" or ".join(shape.losses), do="Choose one of these, or other columns",
        )  # fmt: skip
    return name


def _read(source: str, shape: Shape) -> list[Row]:
    found, columns = [], [*shape.texts, *([shape.target] if shape.target else [])]
    rows = _rows(source)
    require_columns(rows, columns, source)
    for place, row in rows:
        made: Row = {column: text_in(place, row, column) for column in shape.texts}
        if shape.target:
            made[shape.target] = _number(place, row[shape.target], shape.target)
        found.append(made)
    return found


def _number(place: str, value: Any, column: str) -> float:
    """A score of -1 to 1, or a label of 0 or 1."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    fits = number in (0.0, 1.0) if column == "label" else -1 <= number <= 1
    if not fits:
        needed = "0 or 1" if column == "label" else "a number from -1 to 1"
        raise DataError(f"{place}: column {column!r}", got=repr(value)[:40], needed=needed, do="Rescale the column")
    return number


def _trainer(settings: EmbedSettings, given: TrainerInputs, loss: str) -> RunTrainer:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainingArguments

    data: Split[Row] = given.data
    encoder = adapted_encoder(given.model, given.adapter)
    given.notes.append(f"Rows: {rows_counted(data)}.")
    texts = [value for row in data.train for value in row.values() if isinstance(value, str)]
    lengths = [len(ids) for ids in encoder.tokenizer(texts, truncation=False)["input_ids"]]
    if cut := sum(length > encoder.max_seq_length for length in lengths):
        given.notes.append(f"{cut:,} texts are longer than {encoder.max_seq_length} tokens and are cut.")
    # A text that is in a batch twice would be the negative of its own pair.
    sampler = "no_duplicates" if loss in IN_BATCH else "batch_sampler"
    made: RunTrainer = run_trainer(encoder_trainer())(
        encoder,
        args=trainer_arguments(
            partial(run_arguments, SentenceTransformerTrainingArguments), settings, given.checkpoints, given.dtype,
            batch_sampler=sampler,
        ),
        train_dataset=Dataset.from_list(data.train),
        loss=_loss(settings, encoder, loss),
        parts=given.parts,
    )  # fmt: skip
    return made


def _loss(settings: EmbedSettings, encoder: Any, name: str) -> Any:
    from sentence_transformers.sentence_transformer import losses

    kind = getattr(losses, LOSSES[name])
    known = [option for option in inspect.signature(kind).parameters if option != "model"]
    for option in settings.loss_options:
        if option not in known:
            close = nearest(option, known, count=1)
            raise RecipeError(
                f"loss_options.{option}", got=f"no such option of {LOSSES[name]}", needed=", ".join(known),
                do=f"Did you mean {close[0]!r}?" if close else None,
            )  # fmt: skip
    try:
        return kind(encoder, **settings.loss_options)
    except (TypeError, ValueError) as fault:
        raise RecipeError(f"loss_options={settings.loss_options}", got=str(fault)) from fault


def _scores(shape: Shape, model: Any, rows: Sequence[Row]) -> Mapping[str, float]:
    was_training = model.training
    try:
        if shape.score is RETRIEVAL:
            return _retrieved(model, rows)
        return _similar(model, rows) if shape.target == "score" else _separated(model, rows)
    finally:
        model.train(was_training)


def _retrieved(model: Any, rows: Sequence[Row]) -> dict[str, float]:
    """Each anchor looks for its positives among all positives and negatives of the rows."""
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    texts = list(dict.fromkeys(row[key] for row in rows for key in ("positive", "negative") if key in row))
    numbers, wanted = {text: str(number) for number, text in enumerate(texts)}, dict[str, set[str]]()
    for row in rows:
        wanted.setdefault(row["anchor"], set()).add(numbers[row["positive"]])
    queries = {f"q{number}": anchor for number, anchor in enumerate(wanted)}
    evaluator = InformationRetrievalEvaluator(
        queries, {number: text for text, number in numbers.items()},
        {query: wanted[anchor] for query, anchor in queries.items()},
        mrr_at_k=[10], accuracy_at_k=[1], precision_recall_at_k=[1, 10], write_csv=False,
    )  # fmt: skip
    found = evaluator(model)
    main = evaluator.score_function_names[0]
    return {
        "mrr": found[f"{main}_mrr@10"],
        "recall_1": found[f"{main}_recall@1"],
        "recall_10": found[f"{main}_recall@10"],
    }


def _similar(model: Any, rows: Sequence[Row]) -> dict[str, float]:
    from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator

    columns = [[row[key] for row in rows] for key in ("sentence1", "sentence2", "score")]
    found = EmbeddingSimilarityEvaluator(*columns, main_similarity="cosine", write_csv=False)(model)
    return {"spearman": found["spearman_cosine"], "pearson": found["pearson_cosine"]}


def _separated(model: Any, rows: Sequence[Row]) -> dict[str, float]:
    from sentence_transformers.sentence_transformer.evaluation import BinaryClassificationEvaluator

    columns = [[row[key] for row in rows] for key in ("sentence1", "sentence2")]
    labels = [int(row["label"]) for row in rows]
    found = BinaryClassificationEvaluator(
        *columns, labels, write_csv=False, similarity_fn_names=["cosine"]
    )(model)  # fmt: skip
    return {"average_precision": found["cosine_ap"], "accuracy": found["cosine_accuracy"], "f1": found["cosine_f1"]}
