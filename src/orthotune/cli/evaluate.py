"""``orthotune evaluate``: a command for each evaluation of the registry."""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter
from typing import Any

import typer

from orthotune.cli.evaluations import EVALUATIONS, Evaluation
from orthotune.cli.verbs import with_parameters

app = typer.Typer(no_args_is_help=True, help="Measure generated images, or what finetuning changed in a model.")


@app.callback()
def evaluate() -> None:
    """Measure generated images, or what finetuning changed in a model."""


def _verb(evaluation: Evaluation) -> Callable[..., None]:
    """The function of ``orthotune evaluate NAME``."""

    def run(**values: Any) -> None:
        evaluation.function()(**values)

    parameters = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=shown, annotation=kind)
        for name, (kind, shown) in evaluation.parameters.items()
    ]
    one, *more = [f"orthotune evaluate {example}" for example in evaluation.examples]
    examples = ["Examples:", *(f"  {line}" for line in (one, *more))] if more else [f"Example: {one}"]
    return with_parameters(run, parameters, [evaluation.summary, *examples])


for _evaluation in EVALUATIONS.values():
    app.command(_evaluation.name)(_verb(_evaluation))
