"""How finetuning changes the activations of a language model: their size, their shape, and what a rotation explains.

A change of activations that is a rotation of all of them leaves every angle and distance between tokens as it was; the
next layers can undo it. What no rotation explains is a distortion.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from orthotune.metrics.text_loss import IGNORED, TokenRow, _pad


@dataclass(frozen=True)
class ActivationChange:
    """The change of one layer's outputs, over the counted tokens of some texts.

    Attributes:
        layer: 0 is the embedding's output, n that of the n-th block.
        shift: ``|Y - X|^2 / |X|^2``: how far the activations have moved.
        procrustes: ``min over orthogonal Q and scales s of |Y - s X Q|^2 / |Y|^2``: what no rotation explains. 0 to 1.
        gram: ``|Y Y^T - X X^T| / |X X^T|`` in the Frobenius norm: change of inner products between tokens.
        cka: linear centred kernel alignment of X and Y: 1 where one is a rotated and scaled other.
    """

    layer: int
    shift: float
    procrustes: float
    gram: float
    cka: float


def change_of(X: Tensor, Y: Tensor, layer: int = 0) -> ActivationChange:
    """The change from activations ``X`` to ``Y`` of the same tokens.

    Args:
        X: of the base, ``(tokens, features)``.
        Y: of the finetuned model, the same shape.
        layer: number for the result.

    Returns:
        Four numbers, computed in float64. They are about the activations as they are; only CKA centres them.

    Source: Procrustes analysis after Schoenemann (1966); linear CKA, Kornblith et al., arXiv 1905.00414, eq. 3.

    Example:
        >>> X = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
        >>> Q = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1)))[0]
        >>> rotated = change_of(X, X @ Q)
        >>> rotated.shift > 0.5, round(rotated.procrustes, 6), round(rotated.gram, 6), round(rotated.cka, 6)
        (True, 0.0, 0.0, 1.0)
    """
    X, Y = X.double(), Y.double()
    cross, own, other = X.mT @ Y, X.mT @ X, Y.mT @ Y
    size, moved = own.trace(), other.trace()
    nuclear = torch.linalg.svdvals(cross).sum()
    # |Y Y' - X X'|^2 = |Y'Y|^2 + |X'X|^2 - 2 |X'Y|^2: no matrix of tokens by tokens is needed.
    gram = (other.square().sum() + own.square().sum() - 2 * cross.square().sum()).clamp(min=0).sqrt()
    A, B = X - X.mean(0), Y - Y.mean(0)
    aligned = (A.mT @ B).square().sum() / ((A.mT @ A).norm() * (B.mT @ B).norm())
    return ActivationChange(
        layer,
        shift=((Y - X).square().sum() / size).item(),
        procrustes=(1 - nuclear.square() / (size * moved)).clamp(min=0).item(),
        gram=(gram / own.norm()).item(),
        cka=aligned.item(),
    )


@torch.no_grad()
def activation_changes(model: Any, rows: Sequence[TokenRow], base: nn.Module | None = None) -> list[ActivationChange]:
    """The change of every layer's output by an adapter, or against a base.

    Args:
        model: the finetuned causal language model.
        rows: tokens, each row by itself; those that are not counted are skipped. All activations are held in memory:
            layers x tokens x features x 8 bytes.
        base: the model before; ``model`` with its adapters disabled if None.

    Returns:
        One change for the embedding's output and one for each block.

    Raises:
        ValueError: no token to measure on.

    Example:
        >>> activation_changes(model, rows)[-1].procrustes  # doctest: +SKIP
        0.031
    """
    before = _activations(model if base is None else base, rows, disabled=base is None)
    after = _activations(model, rows, disabled=False)
    return [change_of(X, Y, layer) for layer, (X, Y) in enumerate(zip(before, after, strict=True))]


def _activations(model: Any, rows: Sequence[TokenRow], *, disabled: bool) -> list[Tensor]:
    without: AbstractContextManager[Any] = model.disable_adapter() if disabled else nullcontext()
    was_training = model.training
    model.eval()
    device, found = next(model.parameters()).device, list[list[Tensor]]()
    try:
        with without:
            for row in rows:
                ids, labels, mask = (side.to(device) for side in _pad([row]))
                states = model(
                    input_ids=ids, attention_mask=mask, use_cache=False, output_hidden_states=True
                ).hidden_states
                counted = labels[0] != IGNORED
                found.append([state[0][counted].float().cpu() for state in states])
    finally:
        model.train(was_training)
    if not any(len(states[0]) for states in found):
        raise ValueError("no token to measure activations on")
    return [torch.cat(layer) for layer in zip(*found, strict=True)]
