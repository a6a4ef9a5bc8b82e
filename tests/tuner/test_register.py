"""What importing orthotune does to the process, and how it is undone."""

from __future__ import annotations

import re

import peft
import peft.peft_model
import pytest
from peft.config import PeftConfigMixin
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners import MixedModel
from peft.utils import PeftType

import orthotune
from tests.support.source import ROOT, SRC

IMPORT = """
import os, sys
import torch, peft
environment, modules = dict(os.environ), set(sys.modules)
import orthotune
assert dict(os.environ) == environment, "an environment variable was set"
new = {name.partition(".")[0] for name in set(sys.modules) - modules}
assert not new & {"diffusers", "trl", "matplotlib", "datasets", "jinja2", "typer", "rich", "pydantic"}, new
"""


def test_import_is_light_and_sets_nothing(fresh_after_peft):
    done = fresh_after_peft(IMPORT)
    assert done.returncode == 0, done.stderr


def test_unregister_gives_oft_back_and_register_takes_it_again():
    orthotune.register()
    assert PEFT_TYPE_TO_TUNER_MAPPING[PeftType.OFT] is orthotune.OFTModel
    try:
        orthotune.unregister()
        orthotune.unregister()
        assert PEFT_TYPE_TO_TUNER_MAPPING[PeftType.OFT] is peft.OFTModel
        assert PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.OFT] is peft.OFTConfig
        assert "ORTHOTUNE" not in PEFT_TYPE_TO_CONFIG_MAPPING
    finally:
        orthotune.register()
    orthotune.register()
    assert PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.OFT] is orthotune.OFTConfig


@pytest.mark.parametrize(
    "owner, name",
    [
        (PeftConfigMixin, "from_json_file"),
        (MixedModel, "_check_new_adapter_config"),
        (peft.PeftModelForTokenClassification, "__init__"),
        (peft.PeftModelForQuestionAnswering, "__init__"),
        (peft.peft_model, "set_peft_model_state_dict"),
    ],
)
def test_every_function_is_given_back_and_is_on_the_map(owner, name):
    ours = vars(owner)[name]
    try:
        orthotune.unregister()
        pefts = vars(owner)[name]
        function = getattr(pefts, "__func__", pefts)
        assert function is not getattr(ours, "__func__", ours) and function.__module__.startswith("peft.")
    finally:
        orthotune.register()
    assert vars(owner)[name] is not pefts
    assert f"{owner.__name__}.{name}`" in (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")


def test_the_map_names_every_file_of_the_room():
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").split("## The files of `tuner/`")[1].split("\n## ")[0]
    files = {path.name for path in (SRC / "orthotune" / "tuner").glob("*.py")} - {"__init__.py"}
    assert set(re.findall(r"^\| `(\w+\.py)` \|", page, flags=re.MULTILINE)) == files
