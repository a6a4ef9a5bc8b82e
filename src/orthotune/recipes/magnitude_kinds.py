"""Fit magnitudes by a recipe: the same data and loss, with the trained rotation loaded and frozen."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orthotune.operations.load import load_adapter
from orthotune.recipes.registry import RECIPES
from orthotune.runs.record import RunRecord
from orthotune.tuner.strength import free_magnitudes

Say = Callable[[str], None]


def _text(settings: Any, say: Say, bar: bool) -> RunRecord:
    def adapt(model: Any, notes: list[str]) -> Any:
        rotated, _ = load_adapter(model, settings.adapter)
        notes.append(_message(len(free_magnitudes(rotated)), settings.adapter))
        return rotated

    record: RunRecord = RECIPES[settings.recipe].job().run(settings, say, bar=bar, adapt=adapt)
    return record


def _image(settings: Any, say: Say, bar: bool) -> RunRecord:
    from orthotune.image.control.hint_encoder import load_hint_encoder
    from orthotune.recipes.image_run import run_image

    def adapt(family: Any) -> list[str]:
        load_adapter(family.pipeline, settings.adapter)
        parts = [part for part in (family.denoiser, *family.text_encoders.values()) if hasattr(part, "peft_config")]
        return [_message(sum(len(free_magnitudes(part)) for part in parts), settings.adapter)]

    job = RECIPES[settings.recipe].job().job(settings, say)
    if job.hint_encoder:
        # The trained encoder of control images is frozen as well. It is made by the job, whose scores use it.
        made = job.hint_encoder

        def hint_encoder(family: Any) -> Any:
            encoder = made(family)
            encoder.load_state_dict(load_hint_encoder(settings.adapter).state_dict())
            return encoder.requires_grad_(False)

        job = dataclasses.replace(job, hint_encoder=hint_encoder)
    return run_image(settings, dataclasses.replace(job, adapt=adapt), say, bar)


def _message(layers: int, adapter: Path) -> str:
    return f"Magnitudes of {layers} layers are fitted; the rotations of {adapter} are frozen."


def fit(settings: Any, say: Say, bar: bool) -> RunRecord:
    """Fit the magnitudes by the recipe of ``settings``.

    Args:
        settings: of the recipe, with ``adapter``.
        say: gets messages.
        bar: show a progress bar.
    """
    return (_text if RECIPES[settings.recipe].text else _image)(settings, say, bar)
