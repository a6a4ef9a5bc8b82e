"""One step of a model, as it is timed, counted and weighed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.cells import Mode
from harness.subject import Subject

#: what an update multiplies trained numbers by: some units in the last place of a float32
DRIFT = 1 + 1e-6


@dataclass(frozen=True)
class Step:
    """What is timed, and what must happen before it without being timed.

    Example:
        >>> Step(lambda: print("timed"), lambda: print("not"))()
        not
        timed
    """

    run: Callable[[], None]
    before: Callable[[], None] | None = None

    def __call__(self) -> None:
        if self.before is not None:
            self.before()
        self.run()


def step_of(subject: Subject, model: nn.Module, mode: Mode) -> Step:
    """One step of ``model`` on the subject's input.

    A training step is the forward and the backward to the input and to every trained parameter. The optimizer is not
    timed, but before each step every trained number changes: what is kept per parameter version must be made anew, as
    in training. In the other modes a step is the forward without gradients, and parameters stay.

    Example:
        >>> frozen = Subject(nn.Linear(2, 2), torch.zeros(1, 2), lambda model, x: model(x))
        >>> step_of(frozen, frozen.model, "eval")()
    """
    if mode != "train":
        return Step(lambda: _forward(subject, model))
    trained: list[Tensor] = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with torch.no_grad():
        seed = torch.ones_like(subject.call(model, subject.x))
    # Gradients are returned instead of kept, so that there is nothing to clear between steps.
    return Step(
        lambda: _train(subject, model, [subject.x, *trained], seed), (lambda: _update(trained)) if trained else None
    )


@torch.no_grad()
def _forward(subject: Subject, model: nn.Module) -> None:
    subject.call(model, subject.x)


def _train(subject: Subject, model: nn.Module, wanted: list[Tensor], seed: Tensor) -> None:
    torch.autograd.grad(subject.call(model, subject.x), wanted, seed)


@torch.no_grad()
def _update(trained: list[Tensor]) -> None:
    torch._foreach_mul_(trained, DRIFT)
