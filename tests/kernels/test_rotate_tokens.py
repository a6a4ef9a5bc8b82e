"""Tokens rotated by the slots that the device alone knows: the kernel, in Triton's interpreter, beside torch's path."""

from __future__ import annotations

import pytest
import torch

from orthotune.kernels import choose
from orthotune.serving.slots import rotated_tokens

pytest.importorskip("triton", reason="Triton is optional; CI installs it")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def _case(tokens: int, slots: int, count: int, size: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    draw = torch.Generator().manual_seed(tokens + size)
    x = torch.randn(tokens, count * size, generator=draw).to(dtype)
    blocks = (0.3 * torch.randn(slots, count, size, size, generator=draw)).to(dtype)
    return x.to(DEVICE), blocks.to(DEVICE), torch.randint(-1, slots, (tokens,), generator=draw).to(DEVICE)


@pytest.mark.parametrize(
    ("tokens", "slots", "count", "size"), [(1, 1, 2, 8), (37, 3, 2, 32), (20, 5, 3, 12), (17, 2, 1, 100)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_token_is_rotated_by_its_slot(tokens: int, slots: int, count: int, size: int, dtype: torch.dtype) -> None:
    x, blocks, index = _case(tokens, slots, count, size, dtype)
    with choose.forced("triton"):
        found = rotated_tokens(x, blocks, index)
    exact = x.double()
    for token, slot in enumerate(index.tolist()):
        if slot >= 0:
            exact[token] += exact[token] @ torch.block_diag(*blocks[slot].double())
    assert found.dtype is dtype
    scale = exact.abs().max()
    assert (found.double() - exact).abs().max() <= torch.finfo(dtype).eps * scale  # rounded once
    with choose.forced("torch"):
        torch_path = rotated_tokens(x, blocks, index)
    assert (found.double() - torch_path.double()).abs().max() <= 3 * torch.finfo(dtype).eps * scale
    untouched = index < 0
    assert torch.equal(found[untouched], x[untouched])


def test_a_token_has_the_same_bits_beside_other_tokens() -> None:
    x, blocks, index = _case(40, 4, 2, 16, torch.float32)
    x[index < 0] = -0.0  # a sum with zeros would change its sign
    index[3], index[7] = 4, -5  # no slots, as a graph's padding may have
    with choose.forced("triton"):
        together = rotated_tokens(x, blocks, index)
        for token in (0, 3, 7, 11, 39):
            others = torch.arange(40, device=DEVICE) != token
            beside = torch.where(others[:, None], x.flip(0) + 1, x)
            found = rotated_tokens(beside, blocks, torch.where(others, (index + 1) % 4, index))
            assert torch.equal(found[token], together[token])
    assert torch.equal(together[[3, 7]], x[[3, 7]])
    assert torch.equal(torch.signbit(together[index < 0]), torch.signbit(x[index < 0]))


def test_where_the_kernel_does_not_start_torch_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    from orthotune.serving import slots

    x, blocks, index = _case(9, 2, 2, 8, torch.float32)
    monkeypatch.setattr(slots, "choose", lambda *_: choose.Choice("triton", "a card that starts nothing"))
    monkeypatch.setattr(slots, "started", lambda *_: None)
    found = rotated_tokens(x, blocks, index)
    monkeypatch.undo()
    assert torch.equal(found, rotated_tokens(x, blocks, index))
