"""The trained networks as one module: denoiser, trained text encoders, encoder of control images."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn

from orthotune.errors import ConfigError
from orthotune.image.data.batch import Batch
from orthotune.image.families.family import Family, LossOptions


class Trainee(nn.Module):
    """A module whose forward computes the losses of a batch, so that DDP and FSDP wrap one module with one call.

    Parameters that require gradients are trained; construct it after the adapter was added.

    Args:
        family: the pipeline whose denoiser is trained. Text encoders with parameters that require gradients are part of
            the module.
        hint_encoder: encodes ``batch.hints`` as features that are added at ``family.entry``.
    """

    def __init__(self, family: Family, hint_encoder: nn.Module | None = None) -> None:
        super().__init__()
        self.family = family
        self.denoiser = family.denoiser
        learning = {name: encoder for name, encoder in family.text_encoders.items() if _learns(encoder)}
        self.text_encoders = nn.ModuleDict(learning)
        self.hint_encoder = hint_encoder

    def forward(self, batch: Batch, generator: torch.Generator, options: LossOptions) -> Tensor:
        """The weighted loss of each image: float32 ``[n]``.

        Args:
            batch: on the device of the module.
            generator: on the CPU, for noise and times.
            options: weighting and noise.
        """
        conditions = batch.conditions
        if conditions is None:
            conditions = self.family.encode_captions(batch.captions)
        if batch.mask is not None:
            options = replace(options, mask=batch.mask)
        with self._hints(batch):
            losses = self.family.losses(self.denoiser, batch.latents, conditions, generator, options, batch.kept)
        return losses * batch.weight

    def learning(self) -> dict[str, nn.Parameter]:
        """The parameters that are trained, by name."""
        return {name: value for name, value in self.named_parameters() if value.requires_grad}

    def checkpoint_gradients(self) -> None:
        """Switch gradient checkpointing on: activations inside blocks are recomputed in the backward.

        Raises:
            ConfigError: a network does not support this.
        """
        for module in (self.denoiser, *self.text_encoders.values()):
            enable = getattr(module, "enable_gradient_checkpointing", None) or getattr(
                module, "gradient_checkpointing_enable", None
            )
            try:
                if enable is None:
                    raise ValueError("not supported by this class")
                enable()
            except ValueError as fault:
                given = f"gradient_checkpointing of {type(module).__name__}"
                raise ConfigError(given, got=str(fault), do="Leave it out") from fault

    def _hints(self, batch: Batch) -> AbstractContextManager[None]:
        if self.hint_encoder is None or batch.hints is None:
            return nullcontext()
        from orthotune.image.control.hinted import hinted

        features: Tensor = self.hint_encoder(batch.hints)
        return hinted(self.denoiser, self.family.entry, features)


def _learns(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())
