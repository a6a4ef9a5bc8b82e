"""The choice of path is a function of what is asked, and says why."""

from __future__ import annotations

import pytest
import torch

from orthotune.kernels.choose import choose, forced


@pytest.mark.parametrize(
    ("arguments", "path", "why"),
    [
        (("rotate", "cpu", torch.float32, 32, True), "torch", "need a GPU"),
        (("rotate", "cuda", torch.bfloat16, 32, False), "torch", "not installed"),
        (("rotate", "cuda", torch.float64, 32, True), "torch", "no Triton kernel for torch.float64"),
        (("from_parameters", "cuda", torch.float32, 256, True), "torch", "beyond the kernel's 128"),
        (("rotate", "cuda", torch.bfloat16, 32, True), "triton", "a GPU, bfloat16, blocks of 32"),
        (("from_parameters", "cuda", torch.float32, 128, True), "triton", "a GPU, float32, blocks of 128"),
    ],
)
def test_choice(arguments, path, why):
    choice = choose(*arguments)
    assert choice.path == path and why in choice.why


def test_forcing_ends_with_its_block():
    with forced("triton"):
        assert choose("rotate", "cpu", torch.float32, 32).path == "triton"
    assert choose("rotate", "cpu", torch.float32, 32).path == "torch"
