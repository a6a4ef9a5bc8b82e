"""A finished run of a language model: its settings, and its held-out texts as its trainer tokenized them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from orthotune.errors import RecipeError
from orthotune.files.json_file import read_json
from orthotune.files.output import temporary_folder
from orthotune.metrics.text_loss import TokenRow
from orthotune.recipes import preference_data
from orthotune.recipes.preference_settings import PreferenceSettings
from orthotune.recipes.registry import RECIPES
from orthotune.recipes.settings import SFTSettings
from orthotune.recipes.sft_data import examples_for
from orthotune.text import sft_trainer
from orthotune.text.data import Examples

#: The settings of runs that have held-out rows of both domains.
TextRunSettings = SFTSettings | PreferenceSettings


def settings_of_run(run: Path) -> TextRunSettings:
    """The settings of a finished run of ``orthotune train`` whose model predicts tokens: ``sft``, ``dpo`` and so on.

    Args:
        run: the run directory, which holds ``run.json`` and ``adapter``, or ``model`` after full finetuning.

    Raises:
        RecipeError: no such run is there, or it is not finished.
    """
    record = read_json(run / "run.json") if (run / "run.json").is_file() else {}
    kind = _kind(record.get("recipe"))
    if kind is None or not ((run / "adapter").is_dir() or (run / "model").is_dir()):
        raise RecipeError(
            f"{run}", got="no finished run of `orthotune train sft` in it, nor of another recipe that measures texts",
            do="Name the output of such a run: the folder that holds run.json and adapter",
        )  # fmt: skip
    # A fit of magnitudes is a run of its recipe, and has a setting more: its adapter.
    known = kind.model_fields.keys() - {"adapter"}
    return kind(**{key: value for key, value in record["settings"].items() if key in known})


def _kind(recipe: str | None) -> type[TextRunSettings] | None:
    """The settings class of a recipe whose runs have held-out rows, if it is one."""
    if recipe not in RECIPES or not RECIPES[recipe].text:
        return None
    kind: Any = RECIPES[recipe].settings_class()
    measured = kind is SFTSettings or (issubclass(kind, PreferenceSettings) and kind.predicts)
    return kind if measured else None


def held_out_rows(model: Any, tokenizer: Any, settings: TextRunSettings) -> dict[str, list[TokenRow]]:
    """The held-out rows by domain, ``new`` and ``old``; arguments and errors as for :func:`tokenized_rows`."""
    return tokenized_rows(model, tokenizer, settings)[0]


def tokenized_rows(
    model: Any, tokenizer: Any, settings: TextRunSettings, training: int = 1
) -> tuple[dict[str, list[TokenRow]], list[TokenRow]]:
    """The rows of a run as its trainer tokenizes them.

    Args:
        model: the base or the adapted model.
        tokenizer: the base's.
        settings: of the run; ``eval_tokens`` limits the held-out rows of each domain.
        training: number of training examples that are tokenized; at least one.

    Returns:
        Held-out rows by domain, ``new`` and ``old``, and the rows of the training examples.

    Raises:
        DataError: the data is missing or of another form.
    """
    if isinstance(settings, PreferenceSettings):
        return preference_data.tokenized_rows(settings, training)
    examples, domains = examples_for(settings)
    some = Examples(examples.rows[:training], examples.format, examples.source)
    with temporary_folder() as folder:
        arguments = sft_trainer.sft_config(
            folder, packing=settings.packing, data_format=some.format, schedule="constant", bf16=False,
            max_length=settings.max_length, max_steps=1,
        )  # fmt: skip
        trainer = sft_trainer.build_trainer(
            model, tokenizer, arguments, some, domains, None, answers_only=settings.loss_on == "answers"
        )  # fmt: skip
        rows = sft_trainer.domain_rows(trainer, settings.eval_tokens)
        seen = [list(row["input_ids"]) for row in trainer.train_dataset]
    return rows, [TokenRow(ids, ids) for ids in seen]
