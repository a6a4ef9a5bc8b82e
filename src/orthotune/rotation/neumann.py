"""The two Neumann polynomials that PEFT has used; neither is orthogonal, both are kept for files trained with them."""

from __future__ import annotations

import torch
from torch import Tensor

from orthotune.errors import ConfigError


def coefficients(terms: int, legacy: bool = False) -> list[float]:
    """Coefficients of ``I, Q, Q^2, ...`` for PEFT's ``num_cayley_neumann_terms = terms``.

    ``legacy`` is the series of PEFT 0.16 and 0.17: every power up to ``terms - 1`` with factor 2. From 0.18 on the last
    power has factor 1, and 3 and 4 terms are the same polynomial.

    Raises:
        ConfigError: fewer than one term.

    Example:
        >>> coefficients(5), coefficients(5, legacy=True)
        ([1.0, 2.0, 2.0, 2.0, 1.0], [1.0, 2.0, 2.0, 2.0, 2.0])
    """
    if terms < 1:
        raise ConfigError(f"num_cayley_neumann_terms={terms}", needed="at least 1", do="Use 5, PEFT's default")
    if legacy or terms <= 2:
        return [1.0] + [2.0] * (terms - 1)
    degree = max(terms - 1, 3)
    return [1.0] + [2.0] * (degree - 1) + [1.0]


def neumann(Q: Tensor, terms: int = 5, legacy: bool = False) -> Tensor:
    """Truncated series towards ``(I + Q)(I - Q)^{-1}``, which is :func:`~orthotune.rotation.cayley.cayley` of ``-Q``.

    Shapes: ``(..., b, b)`` -> ``(..., b, b)``. Diverges as the norm of ``Q`` nears 1.
    Source: OFTv2, arXiv 2506.19847, equation 4; PEFT 0.16-0.17 (``legacy``) and PEFT >= 0.18.

    Example:
        >>> Q = torch.tensor([[0.0, 0.01], [-0.01, 0.0]])
        >>> from orthotune.rotation.cayley import cayley
        >>> torch.allclose(neumann(Q), cayley(-Q), atol=1e-7)
        True
    """
    if Q.dtype not in (torch.float32, torch.float64):
        Q = Q.float()
    factors = coefficients(terms, legacy)
    eye = torch.eye(Q.shape[-1], dtype=Q.dtype, device=Q.device)
    with torch.autocast(Q.device.type, enabled=False):
        R = factors[-1] * eye.expand_as(Q)
        for factor in reversed(factors[:-1]):  # Horner: one product for each power
            R = Q @ R + factor * eye
    return R
