"""A model can be copied, pickled and saved, merged or not."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch

from tests.support.contract_cases import Case, base_parameters, cases, randomize, same_bits, snapshot
from tests.support.layer_models import everything, rotations, tokens


@pytest.mark.parametrize("case", cases("together"), ids=str)
def test_a_deep_copy_is_independent(case: Case) -> None:
    model, inputs = case.trained(), case.inputs()
    with torch.no_grad():
        expected = model(*inputs)
        twin = copy.deepcopy(model)
        assert torch.equal(twin(*inputs), expected)
        randomize(twin, seed=99)
        assert (twin(*inputs) - expected).abs().max() > 1e-3
        assert torch.equal(model(*inputs), expected)


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_a_copy_can_be_unmerged(how: str, merged: bool) -> None:
    model = everything(magnitude=True, module_dropout=0.2)
    before = snapshot(base_parameters(model))
    with torch.no_grad():
        expected = model(tokens())  # fills the caches
    if merged:
        model.merge_adapter()
    if how == "deepcopy":
        twin = copy.deepcopy(model)
    elif how == "pickle":
        twin = pickle.loads(pickle.dumps(model))
    else:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    torch.testing.assert_close(twin(tokens()), expected, rtol=0, atol=1e-5)
    twin.unmerge_adapter()
    same_bits(base_parameters(twin), before)
    torch.testing.assert_close(twin(tokens()), expected, rtol=0, atol=1e-5)
    assert {id(p) for p in twin.parameters()}.isdisjoint(id(p) for p in model.parameters())


def test_a_cached_rotation_is_not_pickled() -> None:
    model = everything()
    size = len(pickle.dumps(model))
    with torch.no_grad():
        model(tokens())
    assert all(rotation.current() is not None for rotation in rotations(model))
    assert len(pickle.dumps(model)) == size


def test_state_goes_through_a_file_without_pickled_code() -> None:
    model, other = everything(), everything(trained=False)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(tokens()), model(tokens()))


def test_a_merged_state_is_the_merged_weight() -> None:
    model = everything()
    model.merge_adapter()
    expected = model(tokens())
    state = {k: v.clone() for k, v in model.state_dict().items()}
    plain = everything(trained=False)
    plain.load_state_dict({k: v for k, v in state.items() if "oft_" not in k}, strict=False)
    torch.testing.assert_close(plain(tokens()), expected, rtol=0, atol=1e-6)
