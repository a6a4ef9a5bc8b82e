"""Muon for the matrices of a model, and AdamW for everything else, as one optimizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer


class JoinedOptimizer(Optimizer):
    """Several optimizers of different parameters that are stepped, scheduled, saved and loaded as one.

    Args:
        parts: the optimizers; their groups become those of the joined one, in this order.

    Example:
        >>> one, two = (nn.Parameter(torch.ones(2)) for _ in range(2))
        >>> joined = JoinedOptimizer([torch.optim.SGD([one], lr=0.5), torch.optim.AdamW([two], lr=0.1)])
        >>> [group["lr"] for group in joined.param_groups]
        [0.5, 0.1]
    """

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        self.parts = tuple(parts)
        self._counts = [len(part.param_groups) for part in parts]
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of each of the optimizers."""
        loss = None if closure is None else closure()
        for part in self.parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: Any) -> None:
        """As every optimizer; the parts go on with what was loaded."""
        super().load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        """The parts read and write the groups and states of the joined optimizer itself."""
        start = 0
        for part, count in zip(self.parts, self._counts, strict=True):
            part.param_groups = self.param_groups[start : start + count]
            part.state = self.state
            start += count


def muon_with_adamw(model: nn.Module, learning_rate: float, weight_decay: float) -> JoinedOptimizer:
    """Muon for the trainable matrices inside a model; AdamW for embeddings, the head, norms and biases.

    Muon's step is scaled to the size of AdamW's, so that learning rates for AdamW fit (``match_rms_adamw``).

    Args:
        model: with parameters to train.
        learning_rate: of both.
        weight_decay: of the matrices.

    Source: Muon, https://kellerjordan.github.io/posts/muon/; the scale is that of arXiv 2502.16982.

    Example:
        >>> type(muon_with_adamw(nn.Sequential(nn.Linear(4, 3)), 0.1, 0.0).parts[0]).__name__
        'Muon'
    """
    outside = {
        id(parameter)
        for name in ("get_input_embeddings", "get_output_embeddings")
        if (module := getattr(model, name, lambda: None)()) is not None
        for parameter in module.parameters(recurse=False)  # LoRA's factors on an embedding are matrices within
    }
    trained = [one for one in model.parameters() if one.requires_grad]
    matrices = [one for one in trained if one.ndim == 2 and id(one) not in outside]
    others = [one for one in trained if one.ndim != 2 or id(one) in outside]
    parts: list[Optimizer] = []
    if matrices:
        parts.append(
            torch.optim.Muon(matrices, lr=learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        )
    if others:
        parts.append(torch.optim.AdamW(others, lr=learning_rate, weight_decay=0.0))
    return JoinedOptimizer(parts)
