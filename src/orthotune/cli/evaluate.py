"""``orthotune evaluate``: one command for each measure."""

from __future__ import annotations

import typer

from orthotune.cli import evaluate_answers, evaluate_drift, evaluate_forgetting, evaluate_images, evaluate_weights

app = typer.Typer(no_args_is_help=True, help="Measure generated images, or what finetuning changed in a model.")


@app.callback()
def evaluate() -> None:
    """Measure generated images, or what finetuning changed in a model."""


app.command("canny")(evaluate_images.canny)
app.command("segmentation")(evaluate_images.segmentation)
app.command("landmarks")(evaluate_images.landmarks)
app.command("subject")(evaluate_images.subject)
app.command("fid")(evaluate_images.fid)
app.command("energy")(evaluate_weights.energy)
app.command("drift")(evaluate_drift.drift)
app.command("forgetting")(evaluate_forgetting.forgetting)
app.command("answers")(evaluate_answers.answers)
