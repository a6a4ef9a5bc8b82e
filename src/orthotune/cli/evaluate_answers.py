"""``orthotune evaluate answers``: short questions with exact answers, before and after finetuning."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer


def answers(*, model: str, adapter: Path | None, questions: Path | None, strength: float, as_json: bool) -> None:
    """Ask a chat model short questions with exact answers, and print how many it answers right.

    Args:
        model: base, or a run directory.
        adapter: of the base; None for those of the run directory, or for the base alone.
        questions: JSON Lines of questions; None for those of the package.
        strength: of what was trained.
        as_json: print one JSON object, which has every reply.
    """
    found = measure(model, adapter, questions, strength)
    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        _show(found)


@dataclass(frozen=True)
class Asked:
    """The models that are asked.

    Args:
        base: path, hub name or word of the base.
        adapter: that is put on the base; None for none.
        trained: folder of the model after full finetuning; None for an adapter or the base alone.
        quantization: of the base, as a run's settings have it.
    """

    base: str
    adapter: Path | None = None
    trained: Path | None = None
    quantization: str | None = None


def asked(model: str, adapter: Path | None = None) -> Asked:
    """The base and what was trained.

    Args:
        model: a base, or the run directory of a finished run of a language model.
        adapter: of the base.

    Raises:
        RecipeError: a run directory of another kind, without a result, or together with an adapter; the folder of an
            adapter in the place of a base.

    Example:
        >>> asked("gpt2").base
        'gpt2'
    """
    from orthotune.errors import RecipeError
    from orthotune.files.json_file import read_json
    from orthotune.recipes.registry import RECIPES

    folder = Path(model)
    if (folder / "adapter_config.json").is_file():
        raise RecipeError(
            model, got="an adapter", needed="a base or a run directory",
            do=f"Run orthotune evaluate answers BASE --adapter {model}",
        )  # fmt: skip
    if not (folder / "run.json").is_file():
        return Asked(model, adapter)
    if adapter is not None:
        raise RecipeError(
            f"--adapter {adapter}", got=f"{model}, a run directory, which has an adapter of its own",
            do="Name the base in its place, or leave --adapter out",
        )  # fmt: skip
    record = read_json(folder / "run.json", error=RecipeError)
    recipe, settings = RECIPES.get(str(record.get("recipe"))), record.get("settings") or {}
    results = [folder / name for name in ("adapter", "model") if (folder / name).is_dir()]
    if recipe is None or not recipe.text or recipe.head or not settings.get("model") or not results:
        raise RecipeError(
            model, got=f"no finished run of a language model, recipe {record.get('recipe')!r}",
            needed="the output of a run as that of `orthotune train sft`",
        )  # fmt: skip
    full = results[0].name == "model"
    return Asked(
        settings["model"], None if full else results[0], results[0] if full else None, settings.get("quantization")
    )


def measure(
    model: str, adapter: Path | None = None, questions: Path | None = None, strength: float = 1.0
) -> dict[str, Any]:
    """The answers of a base, and of what was trained on it, as plain values ready for JSON.

    Args:
        model: a base, or a run directory.
        adapter: of the base, of any format.
        questions: a file as :func:`orthotune.metrics.questions.read_questions` reads; None for those of the package.
        strength: of the adapter, or of the weights after full finetuning.

    Raises:
        OrthotuneError: the model, the adapter or the questions cannot be read, or the adapter has no strength.

    Example:
        >>> measure("smollm2")["before"]["facts"]["right"]  # doctest: +SKIP
        25
    """
    from orthotune.metrics.answers import answer_questions, record
    from orthotune.metrics.questions import read_questions
    from orthotune.operations.other_methods import load_any
    from orthotune.quantized.loading_options import place
    from orthotune.runs.adapter_off import adapter_off
    from orthotune.runs.layer_strengths import layer_strengths
    from orthotune.runs.quiet import quiet
    from orthotune.text.causal_model import choose_dtype, load_model, load_tokenizer

    chosen, asking = read_questions(questions), asked(model, adapter)  # before the model is loaded
    trained = asking.adapter or asking.trained
    if strength != 1 and trained is None:
        raise typer.BadParameter("--strength needs an adapter or a run directory")
    dtype, began = choose_dtype("auto"), time.monotonic()
    with quiet():
        tokenizer = load_tokenizer(asking.base)
        base: Any = load_model(asking.base, dtype, asking.quantization)
        base = base if asking.quantization else base.to(place())
        after: Any = None
        if asking.trained is not None:
            after = load_model(str(asking.trained), dtype).to(place())
        elif asking.adapter is not None:
            after = load_any(base, asking.adapter).eval()
        if strength != 1:
            layers = layer_strengths(after, base=base if asking.trained else None)
            layers.set(dict.fromkeys(layers.names, strength))
        with adapter_off(base):
            replies = [answer_questions(base, tokenizer, chosen)]
        if after is not None:
            replies.append(answer_questions(after, tokenizer, chosen))
    return {
        "base": asking.base,
        "trained": None if trained is None else str(trained),
        "strength": None if trained is None else strength,
        "questions": "built-in" if questions is None else str(questions),
        "chat_template": getattr(tokenizer, "chat_template", None) is not None,
        "seconds": round(time.monotonic() - began, 1),
        **record(*replies),
    }


def _show(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    sides = {"before": "base", **({"after": "trained"} if "after" in found else {})}
    table = Table(title=f"{found['trained'] or found['base']}: right answers", title_justify="left")
    table.add_column("questions")
    for name in sides.values():
        for column in (name, "95 %", "nats/token"):
            table.add_column(column, justify="right")
    for kind in found["before"]:
        cells = []
        for side in sides:
            one = found[side][kind]
            cells += [f"{one['right']} of {one['questions']}", f"{one['low']:.0%}-{one['high']:.0%}",
                      f"{one['nats']:.3f}"]  # fmt: skip
        table.add_row(kind, *cells)
    Console().print(table)
    if not found["chat_template"]:
        typer.echo("the tokenizer has no chat template: asked as `Question: ...`, `Answer:`")
    if flips := found.get("flips"):
        typer.echo(
            f"{flips['right_to_wrong']} right -> wrong, {flips['wrong_to_right']} wrong -> right, "
            f"p = {flips['p']:.3g} that both are equally good (McNemar's exact test)"
        )
