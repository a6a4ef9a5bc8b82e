"""What importing orthotune does to the process, and how it is undone."""

from __future__ import annotations

import subprocess
import sys

import peft
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import PeftType

import orthotune

IMPORT = """
import os, sys
import torch, peft
environment, modules = dict(os.environ), set(sys.modules)
import orthotune
assert dict(os.environ) == environment, "an environment variable was set"
new = {name.partition(".")[0] for name in set(sys.modules) - modules}
assert not new & {"diffusers", "trl", "matplotlib", "datasets", "jinja2", "typer", "rich", "pydantic"}, new
"""


def test_import_is_light_and_sets_nothing():
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=False)
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
