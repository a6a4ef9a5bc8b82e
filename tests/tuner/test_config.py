"""Every field that PEFT's OFT ever had is accepted, and each means something or is refused."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
from peft import PeftConfig

from orthotune import OFTConfig
from orthotune.errors import ConfigError

FIXTURES = Path(__file__).parent.parent / "fixtures"


def test_r_alone_means_blocks_and_nothing_means_blocks_of_32():
    assert (OFTConfig(r=8).r, OFTConfig(r=8).oft_block_size) == (8, 0)
    assert (OFTConfig().r, OFTConfig().oft_block_size) == (0, 32)
    assert (OFTConfig(r=8, oft_block_size=0).r, OFTConfig(r=0, oft_block_size=16).oft_block_size) == (8, 16)


@pytest.mark.parametrize("sizes", [{"r": 4, "oft_block_size": 4}, {"r": 0, "oft_block_size": 0}])
def test_exactly_one_size(sizes):
    with pytest.raises(ConfigError, match="exactly one of them"):
        OFTConfig(**sizes)


@pytest.mark.parametrize(
    "bad",
    [
        {"bias": "some"},
        {"side": "left"},
        {"block_size_fallback": "guess"},
        {"neumann_series": "new"},
        {"module_dropout": 1.0},
        {"module_dropout": -0.1},
        {"eps": 0.0},
        {"num_cayley_neumann_terms": 0},
        {"layers_pattern": "layers"},
        {"r": -1},
        {"oft_block_size": 2.5},
        {"r": True},
        {"num_cayley_neumann_terms": 2.5},
        {"peft_type": "LORA"},
    ],
)
def test_meaningless_values_are_refused_by_name(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        OFTConfig(**bad)


def test_alpha_is_refused_from_a_user_and_ignored_aloud_from_a_file():
    with pytest.raises(ConfigError, match="OFT has no alpha"):
        OFTConfig(alpha_pattern={"q_proj": 2.0})
    with pytest.warns(UserWarning, match="alpha_pattern of the saved config is ignored"):
        config = OFTConfig(peft_type="OFT", r=4, alpha_pattern={"q_proj": 2.0})
    assert config.alpha_pattern == {}


def test_exact_by_default_but_peft_objects_keep_their_series():
    assert not OFTConfig().use_cayley_neumann
    ours = OFTConfig.from_peft(peft.OFTConfig(r=0, oft_block_size=7, module_dropout=0.25))
    assert ours.use_cayley_neumann and ours.neumann_series == "current"
    assert (ours.oft_block_size, ours.module_dropout) == (7, 0.25)
    assert ours.block_size_fallback == "nearest"


def test_fallback_is_an_error_only_for_a_size_the_user_gave():
    assert OFTConfig(oft_block_size=30).block_size_fallback == "error"
    assert OFTConfig(r=5).block_size_fallback == "error"
    assert OFTConfig().block_size_fallback == "nearest"
    assert OFTConfig(r=5, block_size_fallback="nearest").block_size_fallback == "nearest"


@pytest.mark.parametrize(
    ("folder", "neumann", "series", "r", "block_size"),
    [
        ("peft-0.8.2-oft/plain", False, "current", 4, 0),
        ("peft-0.13.2-oft/plain", False, "current", 4, 0),
        ("peft-0.15.2-oft/plain", False, "current", 4, 0),
        ("peft-0.17.1-oft/neumann5", True, "legacy", 0, 8),
        ("peft-0.17.1-oft/exact", False, "current", 0, 8),
        ("peft-0.21.2-oft/neumann5", True, "current", 0, 8),
        ("peft-0.21.2-oft/exact", False, "current", 0, 8),
    ],
)
def test_configs_of_every_peft_version_are_read_with_their_own_meaning(folder, neumann, series, r, block_size):
    config = PeftConfig.from_pretrained(str(FIXTURES / folder))
    assert isinstance(config, OFTConfig)
    assert (config.use_cayley_neumann, config.neumann_series) == (neumann, series)
    assert (config.r, config.oft_block_size, config.block_size_fallback) == (r, block_size, "nearest")


def test_a_plain_config_is_saved_with_peft_fields_only(tmp_path):
    OFTConfig(oft_block_size=8, target_modules=["v", "q"]).save_pretrained(str(tmp_path))
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["peft_type"] == "OFT"
    assert set(saved) <= {f for f in peft.OFTConfig.__dataclass_fields__}
    assert saved["target_modules"] == ["q", "v"]


@pytest.mark.parametrize(
    "field",
    [
        {"side": "out"},
        {"magnitude": True},
        {"scaled": True},
        {"rank_pattern": {"q": 2}},
        {"block_size_pattern": {"q": 4}},
        {"target_parameters": ["w"]},
        {"neumann_series": "legacy", "use_cayley_neumann": True},
    ],
)
def test_what_stock_peft_cannot_express_is_saved_under_a_type_it_does_not_know(field, tmp_path):
    OFTConfig(oft_block_size=8, **field).save_pretrained(str(tmp_path))
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["peft_type"] == "ORTHOTUNE" and saved["format_version"] == 1
    again = PeftConfig.from_pretrained(str(tmp_path))
    assert {name: getattr(again, name) for name in field} == field


def test_a_newer_format_is_refused():
    with pytest.raises(ConfigError, match="format version 99"):
        OFTConfig(peft_type="ORTHOTUNE", r=4, format_version=99)
