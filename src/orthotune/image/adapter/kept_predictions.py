"""What the base predicts, as the target of pictures whose look is to be kept."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from orthotune.runs.adapter_off import adapter_off


def kept_targets(
    target: Tensor, rows: Tensor | None, denoiser: nn.Module, predict: Callable[[Tensor], Tensor]
) -> Tensor:
    """``target`` ``[n, ...]`` with, in ``rows``, what ``denoiser`` predicts there without its adapters; no gradient.

    The loss of such a row is the change of the output, without the noise that an image's own target brings: the loss
    of distillation (Li and Hoiem 2016, arXiv 1606.09282) where DreamBooth has that of the class images.

    Args:
        target: float32, what would be learned.
        rows: bool ``[n]``; None leaves ``target`` as it is.
        denoiser: with its adapters, as PEFT's layers.
        predict: what ``denoiser`` predicts for the rows of a mask, float32 ``[rows, ...]``.

    Example:
        >>> target = torch.zeros(3, 1)
        >>> kept_targets(target, torch.tensor([False, True, False]), nn.Identity(), lambda rows: torch.ones(1, 1)).T
        tensor([[0., 1., 0.]])
    """
    if rows is None:
        return target
    with torch.no_grad(), adapter_off(denoiser):
        kept = predict(rows)
    return target.index_put((rows,), kept)
