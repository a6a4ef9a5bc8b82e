"""The reference model of preference and reward recipes: the base, asked with the adapter off."""

from __future__ import annotations

from typing import Any

from orthotune.errors import RecipeError
from orthotune.recipes.text_job import TrainerInputs

PRECOMPUTED = "precompute_ref_log_probs"


def check_reference(given: TrainerInputs, asked: dict[str, Any]) -> None:
    """Refuse adapters whose base is not what is left when they are off, and a reference from before the training.

    Args:
        given: what the trainer is made from.
        asked: fields of the trainer's config that the settings pass on.

    Raises:
        RecipeError: biases of the base are trained, or the reference of a continued adapter would be computed first.
    """
    configs = [given.adapter] if given.adapter is not None else list(getattr(given.model, "peft_config", {}).values())
    for config in configs:
        if (bias := getattr(config, "bias", "none")) != "none":
            raise RecipeError(
                f"bias={bias} of the adapter", got="trained biases, which stay when the adapter is off",
                needed="bias=none: the reference is the base with the adapter off", do="Leave bias out",
            )  # fmt: skip
    if asked.get(PRECOMPUTED) and hasattr(given.model, "peft_config"):
        raise RecipeError(
            PRECOMPUTED, got="an adapter that is trained further", needed="a new adapter", do=f"Leave {PRECOMPUTED} out"
        )


def reference_notes(settings: Any) -> list[str]:
    """What to say of the reference where an adapter is continued.

    Args:
        settings: of the run.
    """
    if settings.adapter is None or type(settings).model_fields["adapter"].is_required():
        return []
    return [
        "reference: the base with every adapter off, not the adapter that is continued. To stay near to that one, "
        f"merge it first (orthotune merge {settings.adapter} --out MERGED) and train with model=MERGED."
    ]
