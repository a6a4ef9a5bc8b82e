"""Changes of activations: what a rotation explains, and an adapted model against itself with the adapter off."""

from __future__ import annotations

import pytest
import torch

from orthotune import OFTConfig, get_peft_model
from orthotune.metrics.activation_change import activation_changes, change_of
from orthotune.metrics.text_loss import TokenRow
from tests.support.tiny_text import make_model


def some(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_against_the_definitions() -> None:
    X, Y = some(15, 6), some(15, 6, seed=1) + 0.8 * some(15, 6)
    found = change_of(X, Y)
    assert found.shift == pytest.approx(((Y - X).norm() ** 2 / X.norm() ** 2).item())
    assert found.gram == pytest.approx(((Y @ Y.T - X @ X.T).norm() / (X @ X.T).norm()).item())
    U, S, V = torch.linalg.svd(X.T @ Y)
    nearest, scale = U @ V, S.sum() / X.norm() ** 2
    assert found.procrustes == pytest.approx(((Y - scale * X @ nearest).norm() ** 2 / Y.norm() ** 2).item())
    centre = torch.eye(15, dtype=torch.float64) - 1 / 15
    K, L = centre @ X @ X.T @ centre, centre @ Y @ Y.T @ centre
    assert found.cka == pytest.approx(((K * L).sum() / (K.norm() * L.norm())).item())


@pytest.mark.parametrize("seed", range(3))
def test_rotated_and_scaled_activations_are_not_distorted(seed: int) -> None:
    X, Q = some(30, 8), torch.linalg.qr(some(8, 8, seed=seed))[0]
    found = change_of(X, 2 * X @ Q)
    # Products of 30 numbers in float64; the residual is a difference from 1 of squares.
    assert found.procrustes < 1e-13 and abs(found.cka - 1) < 1e-13 and found.gram == pytest.approx(3)
    same = change_of(X, X)
    assert same.shift == 0 and same.procrustes < 1e-13 and same.gram < 1e-7


def test_an_adapter_against_itself_switched_off() -> None:
    model = get_peft_model(make_model(), OFTConfig(oft_block_size=8, target_modules=["down_proj"]))
    rows = [TokenRow([2, 5, 9, 4], [-100, 5, 9, 4]), TokenRow([3, 8], [3, 8])]
    assert [one.shift for one in activation_changes(model, rows)] == [0, 0, 0]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    model.train()
    found = activation_changes(model, rows)
    assert model.training and [one.layer for one in found] == [0, 1, 2]
    assert found[0].shift == 0 and found[1].shift > 0 and found[2].procrustes > 0
    merged = model.merge_and_unload()
    beside = activation_changes(merged, rows, make_model())
    for one, other in zip(found, beside, strict=True):
        assert one.shift == pytest.approx(other.shift, rel=1e-4, abs=1e-12)  # float32 on either side
    with pytest.raises(ValueError, match="no token"):
        activation_changes(merged, [TokenRow([1, 2], [-100, -100])], merged)
