"""Parts of a rotation on the geodesic from the identity: ``R^t``, logarithms, means.

A rotation is taken apart into its planes, ``R = U diag(e^{i a}) U^H`` with angles ``a`` in (-pi, pi]; ``R^t`` rotates
each plane by ``t a``. The branch: every plane is followed the short way round. A rotation that comes from a skew matrix
by the Cayley map never reaches pi, and its angles are taken from that matrix, where those near pi are as exact as any
other. A rotation by pi (up to rounding) has two logarithms: one of them is taken, and half of it is
a rotation by pi / 2 in that direction.

All of it runs in float64, whatever comes in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from orthotune.errors import OrthotuneError
from orthotune.rotation.cayley import inverse_cayley

#: below this cosine the inverse Cayley map loses digits: 2.9 radians
_NEAR_PI = -0.97
#: decides between the two logarithms of a rotation by pi, far above float64's rounding and far below float32's
_TIE = 1e-13
#: rounding of float16 in blocks of any size; more than that is no rotation
_ORTHOGONAL = 5e-3


@dataclass(frozen=True)
class Planes:
    """Blocks taken apart: unit vectors, angles, and the logarithm of what the planes of a series are stretched by.

    Shapes: ``vectors`` ``(..., b, b)`` complex128, one in each column; ``angles`` and ``stretch`` ``(..., b)`` float64.
    """

    vectors: Tensor
    angles: Tensor
    stretch: Tensor | None = None

    def power(self, t: float) -> Tensor:
        """``R^t``, float64 ``(..., b, b)``; the identity bit for bit at ``t = 0``.

        Example:
            >>> quarter = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
            >>> (planes(quarter).power(2.0) + torch.eye(2)).abs().max().item() < 1e-12
            True
        """
        factors = torch.polar(torch.ones_like(self.angles), t * self.angles)
        if self.stretch is not None:
            factors = factors * torch.exp(t * self.stretch)
        rotated = (self.vectors * (factors - 1).unsqueeze(-2)) @ self.vectors.mH
        return rotated.real + torch.eye(rotated.shape[-1], dtype=torch.float64, device=rotated.device)

    def skew(self, t: float) -> Tensor:
        """The skew ``Q_t`` with ``cayley(Q_t) = R^t``, float64 ``(..., b, b)``; 0 bit for bit at ``t = 0``.

        Raises:
            OrthotuneError: an angle reaches pi, which the Cayley map never does.

        Example:
            >>> quarter = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
            >>> round(planes(quarter).skew(0.5)[0, 1].item(), 4)  # tan(pi / 8)
            0.4142
        """
        half = t * self.angles / 2
        refuse_pi(half, t)
        Q = ((self.vectors * (-1j * half.tan()).unsqueeze(-2)) @ self.vectors.mH).real
        return (Q - Q.mT) / 2

    def logarithm(self) -> Tensor:
        """The skew ``K`` with ``exp(K) = R`` and angles of at most pi, float64 ``(..., b, b)``."""
        K = ((self.vectors * (1j * self.angles).unsqueeze(-2)) @ self.vectors.mH).real
        return (K - K.mT) / 2


def refuse_pi(half: Tensor, t: float) -> None:
    """Raise an OrthotuneError where half an angle ``half`` of a rotation at strength ``t`` is a right angle."""
    if bool((half.abs() >= math.pi / 2 - 1e-6).any()):
        raise OrthotuneError(
            f"the rotation at strength {t:g}", got="an angle of pi, which the Cayley parametrization cannot represent",
            do="Change the strength a little",
        )  # fmt: skip


def planes_of_skew(Q: Tensor, R: Tensor | None = None) -> Planes:
    """The planes of ``cayley(Q)``, or of another function ``R`` of ``Q``, as a Neumann series is.

    Blocks with numbers that are not finite give angles that are not, either.

    Shapes: ``(..., b, b)``.
    """
    Q = Q.double()
    finite = Q.isfinite().all(-1).all(-1)[..., None]
    Q = torch.where(finite[..., None], Q, 0.0)
    found, vectors = torch.linalg.eigh(1j * Q)  # Q u = -i m u, so R u = (1 + i m) / (1 - i m) u
    angles, stretch = 2 * found.atan(), None
    if R is not None:
        values = (vectors.conj() * (R.to(vectors.dtype) @ vectors)).sum(-2)
        angles, stretch = values.angle(), values.abs().log()
    return Planes(vectors, torch.where(finite, angles, math.nan), stretch)


def power_direction(Q: Tensor) -> Tensor:
    """The direction in which ``Q`` moves when every angle of ``cayley(Q)`` grows in proportion.

    With ``R^t`` for a function of the strength, ``t dL/dt`` is the inner product of this direction and ``dL/dQ``,
    because ``d/ds cayley(Q_s) = log(R) R`` at ``s = 1`` for the ``Q_s`` with ``cayley(Q_s) = R^s``.

    Shapes: skew ``(..., b, b)`` -> skew ``(..., b, b)``, float64.

    Example:
        >>> Q = torch.tensor([[0.0, 0.5], [-0.5, 0.0]])
        >>> direction = power_direction(Q)[0, 1].item()
        >>> abs(direction - (1 + 0.25) * math.atan(0.5)) < 1e-12
        True
    """
    found, vectors = torch.linalg.eigh(1j * Q.double())
    moved = (1 + found.square()) * found.atan()
    direction = ((vectors * (-1j * moved).unsqueeze(-2)) @ vectors.mH).real
    return (direction - direction.mT) / 2


def skew_power(Q: Tensor, t: float) -> Tensor:
    """The skew ``Q_t`` with ``cayley(Q_t) = cayley(Q)^t``: every angle ``2 atan(m)`` becomes ``t`` times as large.

    Shapes: skew ``(..., b, b)`` -> skew ``(..., b, b)``, float64.

    Raises:
        OrthotuneError: an angle reaches pi, which the Cayley map never does.

    Example:
        >>> round(skew_power(torch.tensor([[0.0, 1.0], [-1.0, 0.0]]), 0.5)[0, 1].item(), 4)  # tan(pi / 8)
        0.4142
    """
    found, vectors = torch.linalg.eigh(1j * Q.double())
    half = t * found.atan()
    refuse_pi(half, t)
    moved = ((vectors * (-1j * half.tan()).unsqueeze(-2)) @ vectors.mH).real
    return (moved - moved.mT) / 2


def reflection_pairs(S: Tensor, t: float) -> Tensor:
    """Vectors ``w_1 .. w_k`` of length 1 with ``H_k .. H_1 = S^t``, for a rotation ``S`` of an even size ``k``.

    Each of its planes with the angle ``a`` is a product of two reflections whose vectors enclose ``t a / 2``.

    Shapes: ``(k, k)`` -> ``(k, k)`` float64, one vector in a row.

    Source: the theorem of Cartan and Dieudonne.

    Raises:
        OrthotuneError: ``S`` is not a rotation.

    Example:
        >>> quarter = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
        >>> w = reflection_pairs(quarter, 1.0)
        >>> H = [torch.eye(2) - 2 * v.outer(v) for v in w.float()]
        >>> torch.allclose(H[1] @ H[0], quarter, atol=1e-6)
        True
    """
    found, vectors = torch.linalg.eigh(1j * planes(S).logarithm())
    angles, kept = found[found.shape[0] // 2 :], vectors[:, found.shape[0] // 2 :].mT
    first, second = kept.real * math.sqrt(2), kept.imag * math.sqrt(2)
    # Where nothing rotates, the parts of an eigenvector have no lengths of their own, and any vector will do.
    still = (first.norm(dim=-1, keepdim=True) < 0.5) | (second.norm(dim=-1, keepdim=True) < 0.5)
    some = torch.zeros_like(first)
    some[:, 0] = 1.0
    first, second = torch.where(still, some, first), torch.where(still, 0.0, second)
    half = (t * angles / 2)[:, None]
    half = torch.where(still, 0.0, half)
    return torch.stack([first, half.cos() * first + half.sin() * second], 1).flatten(0, 1)


def planes(R: Tensor) -> Planes:
    """The planes of rotations of any origin, including angles of pi.

    Shapes: ``(..., b, b)``.

    Raises:
        OrthotuneError: a block is not orthogonal, or it reflects: then it lies on no geodesic from the identity.
    """
    batch = nearest_rotation(R).reshape(-1, *R.shape[-2:])
    near = torch.linalg.eigvalsh((batch + batch.mT) / 2)[:, 0] < _NEAR_PI
    eye = torch.eye(R.shape[-1], dtype=torch.float64, device=R.device)
    found = planes_of_skew(inverse_cayley(torch.where(near[:, None, None], eye, batch)))
    for index in near.nonzero().flatten().tolist():
        found.vectors[index], found.angles[index] = _with_angles_near_pi(batch[index])
    return Planes(found.vectors.view(R.shape), found.angles.view(R.shape[:-1]))


def _with_angles_near_pi(R: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors and angles of one block, the planes near pi computed separately."""
    cosines, axes = torch.linalg.eigh((R + R.mT) / 2)
    count = int((cosines < -0.9).sum())
    count += count % 2
    P, rest = axes[:, :count], axes[:, count:]
    tie = torch.zeros(count, count, dtype=R.dtype, device=R.device)
    tie[range(0, count, 2), range(1, count, 2)] = _TIE
    backwards = inverse_cayley(-(P.mT @ R @ P)) + tie - tie.mT  # the difference from pi is small
    found, u = torch.linalg.eigh(1j * backwards)
    found, u = found[count // 2 :], u[:, count // 2 :]
    # Very close to pi, u and its conjugate need not be orthogonal: they are orthogonalized in real arithmetic.
    U, _, V = torch.linalg.svd(torch.cat([u.real, u.imag], 1))
    real, imag = (U @ V).chunk(2, dim=1)
    u = torch.complex(real, imag) / math.sqrt(2)
    angles = 2 * found.atan() - math.pi
    others = planes_of_skew(inverse_cayley(rest.mT @ R @ rest))
    vectors = torch.cat([P.to(u.dtype) @ u, P.to(u.dtype) @ u.conj(), rest.to(u.dtype) @ others.vectors], 1)
    return vectors, torch.cat([angles, -angles, others.angles])


def nearest_rotation(R: Tensor, tolerance: float = _ORTHOGONAL) -> Tensor:
    """The rotation nearest to ``R`` in the Frobenius norm, float64.

    Shapes: ``(..., b, b)``.

    Raises:
        OrthotuneError: ``R`` is farther than ``tolerance`` (a singular value's distance from 1) from any, or reflects.
    """
    U, S, V = torch.linalg.svd(R.double())
    off = (S - 1).abs().max().item() if S.numel() else 0.0
    if not off <= tolerance:
        raise OrthotuneError("a rotation", got=f"a matrix that stretches by {off:.2g}", needed="an orthogonal one")
    found = U @ V
    if bool((torch.linalg.det(found) < 0).any()):
        raise OrthotuneError("a rotation", got="a reflection (determinant -1)", needed="determinant 1")
    return found


class _PartialRotation(torch.autograd.Function):
    """``cayley(Q)^t`` with its derivative by divided differences of the eigenvalues (Daleckii and Krein, 1965)."""

    @staticmethod
    def forward(ctx: Any, Q: Tensor, t: float, known: Planes, power: Tensor | None) -> Tensor:
        ctx.t, ctx.known = t, known
        return known.power(t).to(Q.dtype) if power is None else power.view_as(power)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise OrthotuneError(
                f"a second derivative of a rotation at strength {ctx.t:g}", needed="strength 1",
                do="Call set_scale(adapter, 1) before gradients with create_graph=True",
            )  # fmt: skip
        U, half, t = ctx.known.vectors, ctx.known.angles / 2, ctx.t
        difference, total = half[..., :, None] - half[..., None, :], half[..., :, None] + half[..., None, :]
        # (f(m) - f(n)) / (m - n) for f(m) = e^{2 i t atan(m)}; equal angles give the derivative
        close = difference.abs() < 1e-7
        ratio = torch.where(close, t, (t * difference).sin() / torch.where(close, 1.0, difference.sin()))
        scale = 2 * ratio * half.cos()[..., :, None] * half.cos()[..., None, :]
        inner = (U.mH @ grad.mT.to(U.dtype) @ U) * (1j * torch.polar(scale.abs(), t * total) * scale.sign())
        dQ = -(U @ inner @ U.mH).imag.mT
        return dQ.to(grad.dtype), None, None, None


def partial_rotation(
    Q: Tensor,
    t: float,
    known: Planes | None = None,
    power: Tensor | None = None,
) -> Tensor:
    """``cayley(Q)^t``: every plane rotated by ``t`` times its angle, orthogonal and differentiable for every ``t``.

    Args:
        Q: skew, ``(..., b, b)``.
        t: 0 is the identity, 1 the rotation, -1 its inverse.
        known: the planes of ``Q`` when they have been found before.
        power: the result when it has been computed before: only the gradient is added.

    Raises:
        OrthotuneError: in a backward with ``create_graph=True``: there are no second derivatives.

    Shapes: ``(..., b, b)`` -> the same, float32 or float64.

    Example:
        >>> quarter = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
        >>> partial_rotation(quarter, 0.5)
        tensor([[ 0.7071, -0.7071],
                [ 0.7071,  0.7071]])
    """
    with torch.autocast(Q.device.type, enabled=False), torch.no_grad():
        known = planes_of_skew(Q) if known is None else known
    found: Tensor = _PartialRotation.apply(Q, t, known, power)
    return found
