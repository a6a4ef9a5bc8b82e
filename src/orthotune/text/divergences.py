"""Divergences between the predictions of a student and of a teacher, with a gradient to the student.

Each is written so that equal predictions give a divergence of exactly 0 and a gradient of exactly 0: an optimizer as
Adam, which divides a gradient by its size, would make a step of what is left by rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Divergence = Literal["forward", "reverse", "jensen-shannon"]


def forward(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student): the student covers all that the teacher finds likely."""
    # The masses are 1 each and cancel, and so do their gradients where both predictions are equal.
    return (teacher.exp() * (teacher - student) - teacher.exp() + student.exp()).sum(-1)


def reverse(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(student || teacher): the student keeps to what the teacher finds likely."""
    return (student.exp() * (student - teacher) - student.exp() + teacher.exp()).sum(-1)


def jensen_shannon(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean of both divergences from the mixture of student and teacher; at most log 2."""
    # log of the mixture - log p = log((1 + q / p) / 2), exactly 0 where p and q are equal.
    half = functional.softplus(torch.zeros_like(student[..., :1]))
    from_teacher = half - functional.softplus(student - teacher)
    from_student = half - functional.softplus(teacher - student)
    return 0.5 * (teacher.exp() * from_teacher + student.exp() * from_student).sum(-1)


#: By name, given log-probabilities of student and teacher.
DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "forward": forward,
    "reverse": reverse,
    "jensen-shannon": jensen_shannon,
}


def divergence_of(name: Divergence, student: Tensor, teacher: Tensor) -> Tensor:
    """A divergence for each token, in nats.

    Args:
        name: of the divergence, see ``DIVERGENCES`` (Agarwal et al. 2023, arXiv 2306.13649, section 3).
        student: logits, of shape ``(tokens, vocabulary)``.
        teacher: logits of the same shape.

    Returns:
        A tensor of shape ``(tokens,)``.

    Example:
        >>> one, other = torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 3.0]]).log()
        >>> [round(divergence_of(name, one, other).item(), 3) for name in DIVERGENCES]
        [0.131, 0.144, 0.034]
    """
    # At least in float32: two near distributions differ by less than a step of bfloat16.
    dtype = torch.promote_types(student.dtype, torch.float32)
    return DIVERGENCES[name](student.to(dtype).log_softmax(-1), teacher.to(dtype).log_softmax(-1))
