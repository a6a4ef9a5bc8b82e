"""Predictions of the base model as training targets for images that should not change."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from orthotune.runs.adapter_off import adapter_off


def kept_targets(
    target: Tensor, rows: Tensor | None, denoiser: nn.Module, predict: Callable[[Tensor], Tensor]
) -> Tensor:
    """``target`` with some rows replaced by the prediction of the denoiser without its adapters; no gradient.

    The loss of such a row is the change of the output. It is a distillation loss (Li and Hoiem 2016, arXiv 1606.09282),
    used in place of the loss on class images in DreamBooth, and has no noise from the sampled target.

    Args:
        target: the training targets, float32 ``[n, ...]``.
        rows: bool ``[n]``, the rows to replace; None returns ``target`` unchanged.
        denoiser: with its PEFT adapters.
        predict: returns the prediction for the rows of a mask, float32 ``[rows, ...]``.

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
