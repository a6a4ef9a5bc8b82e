"""The directions of a ``subspace`` candidate, computed from the weight, the data or the gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from candidate_settings import Settings

ROWS, BATCH = 64, 8
Choose = Callable[[int, Tensor], Tensor]


def directions_for(settings: Settings, model: Any, layers: list[nn.Linear], train: Tensor, old: Tensor) -> Choose:
    """A function of the number and weight ``(out, in)`` of a layer that returns an orthonormal basis ``(in, width)``.

    ``top`` and ``bottom``: singular directions of the weight; ``newtop``: directions in which the inputs on target data
    are largest; ``newold``: the same relative to source data; ``skewgrad``: directions in which the first gradient
    rotates most; ``skewgradold``: the same relative to source data.
    """
    width, name = settings.width, settings.directions
    if name == "top":
        return lambda place, weight: torch.linalg.svd(weight, full_matrices=False)[2][:width].T.flip(1)
    if name == "bottom":
        return lambda place, weight: torch.linalg.svd(weight, full_matrices=True)[2][-width:].T
    new_inputs, old_inputs = _covariances(model, layers, train), _covariances(model, layers, old)
    gradients = _gradients(model, layers, train)

    def choose(place: int, weight: Tensor) -> Tensor:
        skew_gradient = weight.T @ gradients[place] - gradients[place].T @ weight
        if name == "newtop":
            return torch.linalg.eigh(new_inputs[place])[1][:, -width:]
        if name == "newold":
            return _against(new_inputs[place], old_inputs[place], width)
        if name == "skewgrad":
            return torch.linalg.svd(skew_gradient)[0][:, :width].flip(1)
        if name == "skewgradold":
            return _against(skew_gradient @ skew_gradient.T, old_inputs[place], width)
        raise ValueError(f"directions={name}: needed is top, bottom, newtop, newold, skewgrad or skewgradold")

    return choose


def frames_for(name: str, model: Any, layers: list[nn.Linear], old: Tensor) -> Choose:
    """A function of the number and weight of a layer that returns the frame ``(in, in)`` of a rotation.

    The frame is computed from the second moments ``C`` of the inputs of the layer on source data: ``deviation``, the
    root of the diagonal; ``root``, the matrix root, so that a rotation keeps ``C``; ``principal``, the eigenvectors, so
    that similar variances are in the same block.
    """
    moments = _covariances(model, layers, old)

    def choose(place: int, weight: Tensor) -> Tensor:
        C = moments[place]
        if name == "deviation":
            return torch.diag(C.diagonal().clamp_min(1e-9).sqrt())
        values, vectors = torch.linalg.eigh(C + C.diagonal().mean() * 1e-3 * torch.eye(len(C)))
        if name == "root":
            return vectors @ torch.diag(values.sqrt()) @ vectors.T
        if name == "principal":
            return vectors
        raise ValueError(f"frame={name}: needed is deviation, root or principal")

    return choose


def _against(wanted: Tensor, other: Tensor, width: int) -> Tensor:
    """Orthonormal directions in which ``wanted`` is largest relative to ``other``."""
    ridge = other.diagonal().mean() * 1e-2
    inverse = torch.linalg.inv(torch.linalg.cholesky(other + ridge * torch.eye(len(other))))
    vectors = inverse.T @ torch.linalg.eigh(inverse @ wanted @ inverse.T)[1][:, -width:]
    return torch.linalg.qr(vectors)[0]


@torch.no_grad()
def _covariances(model: Any, layers: list[nn.Linear], chunks: Tensor) -> list[Tensor]:
    sums = [torch.zeros(layer.in_features, layer.in_features) for layer in layers]

    def hook(place: int) -> Any:
        def add(module: nn.Module, given: Any, found: Any) -> None:
            inputs = given[0].reshape(-1, given[0].shape[-1])
            sums[place] += inputs.T @ inputs

        return add

    hooks = [layer.register_forward_hook(hook(place)) for place, layer in enumerate(layers)]
    for start in range(0, min(ROWS, len(chunks)), BATCH):
        model(chunks[start : start + BATCH])
    for each in hooks:
        each.remove()
    return [total / min(ROWS, len(chunks)) / chunks.shape[1] for total in sums]


def _gradients(model: Any, layers: list[nn.Linear], chunks: Tensor) -> list[Tensor]:
    for layer in layers:
        layer.weight.requires_grad_(True)
    for start in range(0, min(ROWS, len(chunks)), BATCH):
        batch = chunks[start : start + BATCH]
        model(batch, labels=batch).loss.backward()
    found = []
    for layer in layers:
        assert layer.weight.grad is not None
        found.append(layer.weight.grad.clone() / (ROWS // BATCH))
        layer.weight.grad = None
        layer.weight.requires_grad_(False)
    return found
