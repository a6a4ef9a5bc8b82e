"""AQLM's layers, with codebooks that hold the test's weight: the package cannot learn them."""

from __future__ import annotations

import os
from functools import partial

import pytest
import torch
from torch import nn

from tests.quantized.layer_checks import Subject

# Its kernel for 8-bit codebooks sums in several threads into the same numbers: with one it can be compared.
os.environ.setdefault("NUMBA_NUM_THREADS", "1")
pytest.importorskip("aqlm")
pytest.importorskip("numba")

from aqlm.inference import QuantizedLinear
from aqlm.utils import pack_int_data

REFUSED = "codebooks that were learned for the old weight"


def _layer(linear: nn.Linear, group: int, codebooks: torch.Tensor, codes: torch.Tensor, bits: int) -> nn.Module:
    layer = QuantizedLinear(
        linear.in_features, linear.out_features, in_group_size=group, out_group_size=1,
        num_codebooks=len(codebooks), nbits_per_codebook=bits, bias=linear.bias is not None, dtype=codebooks.dtype,
    )  # fmt: skip
    layer.codebooks.data = codebooks.view(len(codebooks), -1, 1, group)
    layer.codes.data = pack_int_data(codes, bits).clone()  # it returns an inference tensor
    layer.scales.data = torch.ones_like(layer.scales)
    if linear.bias is not None:
        layer.bias.data = linear.bias.detach().to(codebooks.dtype)
    return layer.requires_grad_(False).eval()


def one_codebook(linear: nn.Linear, dtype: torch.dtype = torch.float32) -> nn.Module:
    """1x12: each of the weight's groups of 8 is an entry of its own."""
    groups = linear.weight.detach().reshape(-1, 8)
    book = torch.zeros(1, 4096, 8)
    book[0, : len(groups)] = groups
    codes = torch.arange(len(groups)).view(linear.out_features, -1, 1)
    return _layer(linear, 8, book.to(dtype), codes, 12)


def two_codebooks(linear: nn.Linear) -> nn.Module:
    """2x8: the first codebook is a grid of 16 x 16 points for pairs of numbers, the second a finer one around 0."""
    pairs = linear.weight.detach().reshape(linear.out_features, -1, 2)
    reach = pairs.abs().max() * 1.01
    step = 2 * reach / 16
    coarse = ((pairs + reach) / step).long().clamp(0, 15)
    rest = pairs + reach - (coarse + 0.5) * step
    fine = ((rest + step / 2) / (step / 16)).long().clamp(0, 15)
    points = torch.cartesian_prod(torch.arange(16.0), torch.arange(16.0))
    books = torch.stack([(points + 0.5) * step - reach, (points + 0.5) * step / 16 - step / 2])
    codes = torch.stack([c[..., 0] * 16 + c[..., 1] for c in (coarse, fine)], -1)
    return _layer(linear, 2, books, codes, 8)


SUBJECTS = [
    Subject("aqlm-1x12", one_codebook, "1x12", 8, product=1e-6, merges=REFUSED),
    Subject("aqlm-2x8", two_codebooks, "2x8", 7, product=1e-5, merges=REFUSED),
    Subject(
        "aqlm-1x12-bfloat16", partial(one_codebook, dtype=torch.bfloat16), "1x12", 8, dtype=torch.bfloat16,
        product=8e-3, merges=REFUSED,
    ),
]  # fmt: skip
