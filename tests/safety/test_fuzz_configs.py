"""A thousand recipes and a thousand adapter configs: settings that can be used, or a fault in our words."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from orthotune import OFTConfig, get_peft_model
from orthotune.errors import OrthotuneError, RecipeError
from orthotune.recipes.load import load_settings
from orthotune.recipes.settings import SFTSettings
from tests.support.kept_results import keep_result

THOUSAND = settings(
    max_examples=1000, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.sampled_from([0, 1, 2, 4, 8]) | st.floats() | st.text(max_size=6)
    | st.sampled_from(["oft", "lora", "auto", "none", "float32", "stop", "go-on", "text-world", "in", "out", "1e-4"])
)  # fmt: skip
#: how often each outcome was met
MET: Counter[str] = Counter()
VALUES = (
    SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.text(max_size=4) | st.integers(), SCALARS, max_size=2)
)
KEYS = st.sampled_from([*SFTSettings.model_fields, "lerning_rate", "rotation.side", "", "model.x"]) | st.text(
    max_size=5
)


@pytest.fixture(scope="module", autouse=True)
def _kept() -> Iterator[None]:
    yield
    if MET:  # of the examples that this worker of pytest had
        keep_result(f"fuzz-configs-{os.environ.get('PYTEST_XDIST_WORKER', 'all')}", dict(sorted(MET.items())))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that every example writes anew: making and removing a folder takes longer than reading a recipe."""
    return tmp_path_factory.mktemp("recipes") / "mine.yaml"


@THOUSAND
@given(
    values=st.dictionaries(KEYS | st.integers(), VALUES, max_size=4),
    words=st.lists(st.tuples(KEYS, VALUES), max_size=2),
)
def test_a_recipe_is_read_or_told(recipe: Path, values: dict[Any, Any], words: list[tuple[str, Any]]) -> None:
    overrides = [f"{key}={yaml.safe_dump(value, default_flow_style=True).splitlines()[0]}" for key, value in words]
    recipe.write_text(yaml.safe_dump(values), encoding="utf-8")
    try:
        found = load_settings(SFTSettings, recipe, overrides)
    except RecipeError as error:
        assert len(str(error)) < 3000
        MET["recipes: refused"] += 1
        return
    MET["recipes: read"] += 1
    # what passed means the same when it is written down and read again
    assert SFTSettings(**found.model_dump(exclude_unset=True)).record() == found.record()


@settings(parent=THOUSAND, max_examples=300)
@given(text=st.text(alphabet=st.sampled_from(list("ab:- \n[]{}&*!|>'\"%@`#?,\t\\\0é")), max_size=60))
def test_any_text_is_read_as_a_recipe_or_told(recipe: Path, text: str) -> None:
    recipe.write_text(text, encoding="utf-8")
    try:
        load_settings(SFTSettings, recipe)
        MET["texts: read"] += 1
    except RecipeError as error:
        assert len(str(error)) < 3000
        MET["texts: refused"] += 1


FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "r": st.sampled_from([0, 1, 2, 3, 4]),
    "oft_block_size": st.sampled_from([None, 0, 2, 3, 4, 6]),
    "module_dropout": st.sampled_from([0.0, 0.5]),
    "target_modules": st.sampled_from(
        [["lin"], ["lin", "conv", "emb"], "all-linear", ".*lin|.*conv", "(", ["nowhere"], []]
    ),
    "exclude_modules": st.sampled_from([None, ["conv"], ".*emb"]),
    "layers_to_transform": st.sampled_from([None, 0, [0]]),
    "modules_to_save": st.sampled_from([None, ["head"]]),
    "bias": st.sampled_from(["none", "all", "oft_only"]),
    "side": st.sampled_from(["in", "out"]),
    "eps": st.sampled_from([6e-5, 0.3]),
    "rank_pattern": st.sampled_from([{}, {"lin": 2}, {"(": 2}]),
    "block_size_pattern": st.sampled_from([{}, {"lin": 2}, {"conv": 5}]),
    "num_cayley_neumann_terms": st.sampled_from([1, 5, 2000]),
    "block_size_fallback": st.sampled_from([None, "error", "nearest"]),
    "layer_settings": st.sampled_from([{}, {"lin": {"side": "out"}}, {"lin": {"terms": 10**9}}, {"lin": 3}]),
    **{
        name: st.booleans()
        for name in ("coft", "block_share", "use_cayley_neumann", "magnitude", "scaled", "fan_in_fan_out")
    },
}
NOW = st.lists(st.sampled_from(sorted(FIELDS)), max_size=3, unique=True).flatmap(
    lambda names: st.fixed_dictionaries({name: FIELDS[name] for name in names})
)
ODD = st.dictionaries(st.sampled_from([*FIELDS, "init_weights", "target_parameters"]), VALUES, max_size=1)


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb, self.lin = nn.Embedding(5, 12), nn.Linear(12, 8)
        self.conv, self.head = nn.Conv2d(2, 4, 3, padding=1), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.lin(self.emb(x))
        return self.head(self.conv(y.view(-1, 2, 2, 2)).flatten(1).unflatten(1, (2, 8)).sum(1))


@THOUSAND
@given(fields=NOW, odd=ODD)
def test_a_config_makes_an_adapter_that_does_nothing_yet_or_is_told(
    fields: dict[str, Any], odd: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    net, x = _Net(), torch.arange(5)
    expected = net(x).detach()
    before = sorted(net.state_dict())
    said = {"target_modules": ["lin", "conv"], **fields, **odd}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = get_peft_model(net, OFTConfig(**said))
        except OrthotuneError as error:
            assert len(str(error)) < 3000
            MET["configs: refused"] += 1
            assert sorted(net.state_dict()) == before  # an error leaves the model as it was
            return
        if said.get("init_weights", True) is True:
            found = model.eval()(x)
            # float32, sums of 12 products around 1: a fresh rotation is the identity but for the rounding of its map
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert any(parameter.requires_grad for parameter in model.parameters())
        MET["configs: adapted"] += 1


def test_both_ends_were_met() -> None:
    """Of the examples above, which run before."""
    found = MET["configs: refused"], MET["configs: adapted"]
    assert found == (0, 0) or min(found) > 100
