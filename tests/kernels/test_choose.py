"""The choice of path is a function of what is asked, and says why."""

from __future__ import annotations

import pytest
import torch

from orthotune.kernels import choose as module
from orthotune.kernels.cards import CARDS, LEAST, card_of
from orthotune.kernels.choose import choose, forced, started
from orthotune.kernels.tiles import shared_memory

SIZES = (8, 12, 31, 32, 33, 64, 96, 128, 256)


@pytest.mark.parametrize(
    ("arguments", "path", "why"),
    [
        (("rotate", "cpu", torch.float32, 32, True), "torch", "need a GPU"),
        (("rotate", "cuda", torch.bfloat16, 32, False), "torch", "not installed"),
        (("rotate", "cuda", torch.float64, 32, True), "torch", "no Triton kernel for torch.float64"),
        (("rotate", "cuda", torch.float32, 512, True), "torch", "beyond the kernel's 256"),
        (("rotate", "cuda", torch.bfloat16, 32, True), "triton", "a GPU, bfloat16, blocks of 32"),
        (("from_parameters", "cuda", torch.float32, 32, True), "triton", "a GPU, float32, blocks of 32"),
        (("from_parameters", "cuda", torch.float32, 33, True), "products", "more than one program holds"),
        (("from_parameters", "cuda", torch.float32, 1024, True), "products", "more than one program holds"),
        (("rotate", "xpu", torch.bfloat16, 32, True), "triton", "a GPU"),
        (("rotate", "xpu", torch.bfloat16, 32, False), "torch", "not installed"),
        (("rotate", "mps", torch.bfloat16, 32, True), "torch", "Apple"),
        (("from_parameters", "mps", torch.float32, 64, True), "torch", "Apple"),
        (("rotate", "meta", torch.float32, 32, True), "torch", "need a GPU"),
    ],
)
def test_choice(arguments, path, why):
    choice = choose(*arguments)
    assert choice.path == path and why in choice.why


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
@pytest.mark.parametrize("operation", ["from_parameters", "rotate", "rotate_tokens"])
def test_a_chosen_kernel_fits_on_the_card(card, operation):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for size in SIZES:
            path = choose(operation, "cuda", dtype, size, triton=True, card=card).path
            spills = card.architecture == "gfx1100" and dtype is torch.float32
            spills |= card.architecture == "sm_100" and dtype is not torch.float32 and size > 32
            spills |= card.maker == "NVIDIA" and dtype is not torch.float32 and size > 32 and size % 16 > 0
            without_tensor_cores = operation != "from_parameters" and 0 < card.capability < 80
            old = without_tensor_cores or (operation == "rotate" and spills)
            assert path == (
                "torch" if old else "products" if operation == "from_parameters" and size > 32 else "triton"
            )
            assert path == "torch" or shared_memory(operation, dtype.itemsize, size) <= card.shared


def test_a_kernel_that_needs_more_than_the_card_gives_is_not_chosen():
    needed = shared_memory("rotate", 2, 64)
    small, enough = (LEAST._replace(name="a small card", shared=size) for size in (needed - 1, needed))
    given = ("rotate", "cuda", torch.bfloat16, 64, True)
    assert choose(*given, enough).path == "triton"
    refused = choose(*given, small)
    assert refused.path == "torch" and f"needs {needed} bytes of shared memory, a small card gives" in refused.why


def test_a_card_older_than_the_compiler_gets_torch():
    old = CARDS["sm_75"]._replace(architecture="sm_61", name="GTX 1080")
    assert choose("rotate", "cuda", torch.float32, 32, True, old).path == "torch"


def test_without_a_gpu_the_least_is_assumed():
    if not torch.cuda.is_available():
        assert card_of("cuda") == LEAST


def test_forcing_ends_with_its_block():
    with forced("triton"):
        assert choose("rotate", "cpu", torch.float32, 32).path == "triton"
    assert choose("rotate", "cpu", torch.float32, 32).path == "torch"


def _fails():
    raise RuntimeError("Triton Error [CUDA]: device kernel image is invalid")


def test_a_kernel_that_does_not_start_is_told_once_and_not_chosen_again(monkeypatch):
    monkeypatch.setattr(module, "_refused", set())
    device, given = torch.device("cuda"), (torch.bfloat16, 32)
    assert choose("rotate", device, *given, triton=True).path == "triton"
    with pytest.warns(RuntimeWarning, match=r"bfloat16, blocks of 32, could not be started on .*own operations run"):
        assert started("rotate", device, *given, _fails) is None
    again = choose("rotate", device, *given, triton=True)
    assert again.path == "torch" and "could not be started on" in again.why
    assert choose("rotate", device, torch.bfloat16, 64, triton=True).path == "triton"


def test_a_forced_kernel_fails_aloud():
    with forced("triton"), pytest.raises(RuntimeError, match="kernel image"):
        started("rotate", torch.device("cuda"), torch.bfloat16, 32, _fails)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("Triton Error: memory"), RuntimeError("shapes"), ValueError()]
)
def test_an_error_that_is_not_the_kernels_is_not_swallowed(error):
    def fails():
        raise error

    with pytest.raises(type(error)):
        started("rotate", torch.device("cuda"), torch.bfloat16, 32, fails)
