"""Control pictures in a denoiser: their features are added where it first sees the latents."""

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
    """While it is open, the layer ``entry`` of ``denoiser`` gives its output plus ``features``.

    A batch that is ``k`` times as large as that of the features (guidance runs the model with and without the prompt
    at once) sees them ``k`` times, one after the other. Gradients reach the features. Whatever happens inside, the
    layer is as before afterwards.

    Args:
        denoiser: with or without adapters, also on the entry layer.
        entry: path of the layer, ``Family.entry``.
        features: ``[n, channels, h, w]``, as a :class:`HintEncoder` gives them, for an output of that shape, or
            ``[n, h * w, channels]`` row by row.

    Raises:
        ConfigError: no such layer, or it did not run (in a compiled model).
        DataError: features of another size than the layer's output.

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
        # torch.compile does not look for hooks again once it has compiled a model.
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
    """One image per prompt and control image, of the control images' size: uint8 ``[n, 3, H, W]``.

    Args:
        family: the model.
        encoder: of the control images.
        prompts: one for each image.
        hints: float32 ``[n, 3, H, W]`` of 0..1, as many as prompts.
        seeds: one for each image.
        batch_size: images that are generated at once.
        options: further ones of ``Family.generate``: ``steps``, ``guidance``.

    Raises:
        DataError: not as many control images as prompts, or of a size that the model cannot draw.
    """
    if len(prompts) != len(hints):
        raise DataError("control pictures", got=f"{len(hints)}", needed=f"one for each of {len(prompts)} prompts")
    height, width = hints.shape[-2:]
    place = next(encoder.parameters()).device
    pictures = []
    for first in range(0, len(prompts), batch_size):
        part = slice(first, first + batch_size)
        with hinted(family.denoiser, family.entry, encoder(hints[part].to(place))):
            pictures.append(
                family.generate(
                    prompts[part], seeds[part], height=height, width=width, batch_size=batch_size, **options
                )
            )
    return torch.cat(pictures)


def _like(features: Tensor, output: Tensor) -> Tensor:
    """Features in the layout, batch and dtype of a layer's output."""
    if output.ndim == 3:
        features = features.flatten(2).transpose(1, 2)
    times, rest = divmod(len(output), len(features))
    if features.shape[1:] != output.shape[1:] or rest:
        raise DataError(
            "control pictures", got=f"features {tuple(features.shape)}",
            needed=f"{tuple(output.shape)}, as the denoiser's first layer gives, or a part of that batch",
            do="Make the control pictures as large as the pictures to draw, in pixels",
        )  # fmt: skip
    return features.repeat(times, *[1] * (features.ndim - 1)).to(output.device, output.dtype)
