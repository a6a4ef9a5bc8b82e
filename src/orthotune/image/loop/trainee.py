"""What is trained, as one module: the denoiser, text encoders that learn with it, the control pictures' encoder."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from orthotune.errors import ConfigError
from orthotune.image.data.batch import Batch
from orthotune.image.families.family import Family, LossOptions


class Trainee(nn.Module):
    """One forward from a batch to its losses, so that DDP and FSDP see one module and one call.

    Its parameters that require a gradient are what is trained; call it after the adapter was put on.

    Args:
        family: the pipeline whose denoiser is trained. Text encoders belong to the trainee when one of their
            parameters requires a gradient.
        hint_encoder: gives features of ``batch.hints`` that are added at ``family.entry``.
    """

    def __init__(self, family: Family, hint_encoder: nn.Module | None = None) -> None:
        super().__init__()
        self.family = family
        self.denoiser = family.denoiser
        learning = {name: encoder for name, encoder in family.text_encoders.items() if _learns(encoder)}
        self.text_encoders = nn.ModuleDict(learning)
        self.hint_encoder = hint_encoder

    def forward(self, batch: Batch, draw: torch.Generator, options: LossOptions) -> Tensor:
        """The weighted loss of each image: float32 ``[n]``.

        Args:
            batch: on the device of the trainee.
            draw: where noise and times come from, on the CPU.
            options: weighting and noise.
        """
        conditions = batch.conditions
        if conditions is None:
            conditions = self.family.encode_captions(batch.captions)
        with self._hints(batch):
            losses = self.family.losses(self.denoiser, batch.latents, conditions, draw, options, batch.kept)
        return losses * batch.weight

    def learning(self) -> dict[str, nn.Parameter]:
        """The parameters that are trained, by name."""
        return {name: value for name, value in self.named_parameters() if value.requires_grad}

    def checkpoint_gradients(self) -> None:
        """Keep no activations inside the models' blocks; they are computed again in the backward.

        Raises:
            ConfigError: a model that cannot do this.
        """
        for module in (self.denoiser, *self.text_encoders.values()):
            turn_on = getattr(module, "enable_gradient_checkpointing", None) or getattr(
                module, "gradient_checkpointing_enable", None
            )
            try:
                if turn_on is None:
                    raise ValueError("it has no such switch")
                turn_on()
            except ValueError as fault:
                said = f"gradient_checkpointing of {type(module).__name__}"
                raise ConfigError(said, got=str(fault), do="Leave it out") from fault

    def _hints(self, batch: Batch) -> AbstractContextManager[None]:
        if self.hint_encoder is None or batch.hints is None:
            return nullcontext()
        from orthotune.image.control.hinted import hinted

        features: Tensor = self.hint_encoder(batch.hints)
        return hinted(self.denoiser, self.family.entry, features)


def _learns(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())
