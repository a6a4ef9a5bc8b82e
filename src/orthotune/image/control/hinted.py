"""Add the features of control images to the output of the first layer of a denoiser."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from orthotune.errors import ConfigError, DataError
from orthotune.image.control.hint_encoder import HintEncoder, entry_of
from orthotune.image.families.family import Family


@contextmanager
def hinted(denoiser: nn.Module, entry: str, features: Tensor) -> Iterator[None]:
    """Context manager that adds ``features`` to the output of the layer ``entry`` of ``denoiser``.

    If the batch is ``k`` times as large as that of the features, the features are repeated ``k`` times: guidance runs
    the model with and without the prompt in one batch. Gradients reach the features. The layer is restored in any case.

    Args:
        denoiser: with or without adapters, also on the entry layer.
        entry: path of the layer, ``Family.entry``.
        features: ``[n, channels, h, w]``, as a :class:`HintEncoder` gives them, for an output of that shape, or
            ``[n, h * w, channels]`` row by row.

    Raises:
        ConfigError: there is no such layer, or it did not run (in a compiled model).
        DataError: the features have another size than the output of the layer.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1))
        >>> latents, features = torch.rand(2, 4, 5, 6), torch.rand(1, 8, 5, 6)
        >>> plain = model(latents)
        >>> with hinted(model, "0", features):
        ...     print(torch.equal(model(latents), plain + features))
        True
    """
    layer, ran = entry_of(denoiser, entry), False

    def add(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        nonlocal ran
        ran = True
        return output + _like(features, output)

    handle = layer.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()
    if not ran:
        # A compiled model does not check for new hooks.
        raise ConfigError(f"control of layer {entry!r}", got="it did not run", do="Run the model without torch.compile")


@torch.no_grad()
def generate_hinted(
    family: Family,
    encoder: HintEncoder,
    prompts: Sequence[str],
    hints: Tensor,
    seeds: Sequence[int],
    *,
    batch_size: int = 16,
    **options: Any,
) -> Tensor:
    """Generate one image per prompt and control image, in the size of the control image: uint8 ``[n, 3, H, W]``.

    Args:
        family: the model.
        encoder: of the control images.
        prompts: one per image.
        hints: float32 ``[n, 3, H, W]`` of 0..1, as many as prompts.
        seeds: one per image.
        batch_size: images per batch.
        options: further arguments of ``Family.generate``: ``steps``, ``guidance``.

    Raises:
        DataError: the numbers of control images and prompts differ, or the model cannot generate this size.
    """
    if len(prompts) != len(hints):
        raise DataError("control images", got=f"{len(hints)}", needed=f"one for each of {len(prompts)} prompts")
    height, width = hints.shape[-2:]
    device = next(encoder.parameters()).device
    images = []
    for first in range(0, len(prompts), batch_size):
        part = slice(first, first + batch_size)
        with hinted(family.denoiser, family.entry, encoder(hints[part].to(device))):
            images.append(
                family.generate(
                    prompts[part], seeds[part], height=height, width=width, batch_size=batch_size, **options
                )
            )
    return torch.cat(images)


def _like(features: Tensor, output: Tensor) -> Tensor:
    """Features in the layout, batch and dtype of a layer's output."""
    if output.ndim == 3:
        features = features.flatten(2).transpose(1, 2)
    times, rest = divmod(len(output), len(features))
    if features.shape[1:] != output.shape[1:] or rest:
        raise DataError(
            "control images", got=f"features {tuple(features.shape)}",
            needed=f"{tuple(output.shape)}, as the denoiser's first layer gives, or a part of that batch",
            do="Make the control images as large as the images to draw, in pixels",
        )  # fmt: skip
    return features.repeat(times, *[1] * (features.ndim - 1)).to(output.device, output.dtype)
