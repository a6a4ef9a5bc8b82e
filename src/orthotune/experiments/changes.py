"""What a finished run changed in a language model: its predictions and its activations, on either domain.

Several explanations of forgetting name one of these numbers: the divergence from the base on the *target* domain
(arXiv 2509.04259), and the distortion of activations on the source domain that no rotation explains (arXiv 2605.28819).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orthotune import PeftModel
from orthotune.errors import RecipeError
from orthotune.metrics.activation_change import ActivationChange, activation_changes
from orthotune.metrics.drift import text_drift
from orthotune.metrics.text_loss import TokenRow, mean_loss
from orthotune.quantized.loading_options import place
from orthotune.recipes.held_out import held_out_rows, settings_of_run
from orthotune.runs.quiet import quiet
from orthotune.text.causal_model import choose_dtype, load_model, load_tokenizer
from orthotune.text.sft_trainer import some_rows

#: Tokens of either domain whose activations are compared.
TOKENS = 1024


@dataclass(frozen=True)
class DomainChange:
    """What changed on the texts of one domain.

    Attributes:
        nats_before, nats_after: loss of the base and of the finetuned model, nats per token.
        kl: mean KL(base || finetuned) of next-token predictions, nats per token.
        same_choice: share of tokens whose likeliest next token is the same.
        layers: of activations, from the embedding's output to the last block's.
    """

    nats_before: float
    nats_after: float
    kl: float
    same_choice: float
    layers: list[ActivationChange]

    def mean(self, measure: str) -> float:
        """The mean of a measure of activations over the blocks.

        Args:
            measure: ``shift``, ``procrustes``, ``gram`` or ``cka``.
        """
        blocks = self.layers[1:]
        return sum(float(getattr(layer, measure)) for layer in blocks) / len(blocks)


def changes_of(run: Path, tokens: int = TOKENS) -> dict[str, DomainChange]:
    """What a finished run of ``orthotune train sft`` changed, measured on its held-out texts.

    Args:
        run: the run directory.
        tokens: of either domain; of all of them, activations are held in memory.

    Returns:
        ``new`` and ``old`` -> the change on the target and on the source domain.

    Raises:
        RecipeError: no finished run there, or one without a target or a source domain.
    """
    settings = settings_of_run(run)
    dtype = choose_dtype(settings.dtype)
    with quiet():
        base: Any = load_model(settings.model, dtype, settings.quantization)
        base = base if settings.quantization else base.to(place())
        rows = held_out_rows(base, load_tokenizer(settings.model), settings)
        if not {"new", "old"} <= set(rows):
            raise RecipeError(f"{run}", got="no target or no source domain", do="Train with old_data and eval_data")
        rows = {domain: some_rows(own, tokens) for domain, own in rows.items()}
        before = {domain: mean_loss(base, own).nats for domain, own in rows.items()}
        if settings.method == "full":
            model: Any = load_model(str(run / "model"), dtype).to(place())
            return {domain: _change(model, own, before[domain], base) for domain, own in rows.items()}
        model = PeftModel.from_pretrained(base, run / "adapter").eval()
    return {domain: _change(model, own, before[domain], None) for domain, own in rows.items()}


def _change(model: Any, rows: list[TokenRow], before: float, base: Any) -> DomainChange:
    drift = text_drift(model, rows, base)
    return DomainChange(
        before, mean_loss(model, rows).nats, drift.kl, drift.same_choice, activation_changes(model, rows, base)
    )
