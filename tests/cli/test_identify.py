"""``orthotune identify`` says of every fixture what wrote it, and of a damaged file what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from orthotune.formats.kinds import DIFF
from orthotune.formats.registry import format_called, targets
from orthotune.operations.identify import identify
from tests.support.producers import FIXTURES, Produced, produced

#: producer of the fixtures -> what the probable producer must name
MEANT = {
    "kohya-oft-2023-10": "networks.oft", "kohya-oft-2024-09": "networks.oft",
    "kohya-oft_flux-2024-09": "networks.oft_flux", "lycoris-2.0.0": "LyCORIS 2.0",
    "onetrainer-oftv2-2025-11-14": "OneTrainer", "onetrainer-oftv2-2026-08": "OneTrainer",
    "peft-0.8.2-oft": "PEFT 0.8 to 0.13", "peft-0.13.2-oft": "PEFT 0.8 to 0.13", "peft-0.15.2-oft": "PEFT 0.14 or",
    "peft-0.17.1-oft": "PEFT 0.1", "peft-0.21.2-oft": "PEFT 0.18 or later", "peft-0.12.0-boft": "BOFT",
    "peft-0.13.2-boft": "BOFT", "peft-0.21.2-boft": "BOFT", "zeju-oft": "the original program",
}  # fmt: skip


@pytest.mark.parametrize("case", produced(), ids=str)
def test_every_producer_is_told(case: Produced) -> None:
    found = identify(case.adapter, **asdict(case.options))
    assert format_called(found.format) is not None
    assert MEANT.get(case.producer, "LyCORIS 2.1") in found.producer
    assert set(found.conversions) == {*targets(), DIFF}
    assert set(found.needs_base) <= set(found.conversions)
    assert found.layers == sum(found.kinds.values()) and found.blocks == sum(found.block_sizes.values())
    assert found.dtypes and set(found.sides) <= {"in", "out"}


def test_text_and_json_say_the_same(call: Callable) -> None:
    path = FIXTURES / "peft-0.8.2-oft" / "coft"
    done = call("identify", path)
    assert done.exit_code == 0, done.stderr
    for line in (
        "format         peft-oft-0.8", "side           out", "COFT           eps 0.001",
        "dtypes         F32 in 2 tensors",
        "blocks         8, by size: 4 of 3, 4 of 4", "layers         2: 2 out exact",
    ):  # fmt: skip
        assert line in done.stdout
    facts = json.loads(call("identify", path, "--json").stdout)
    assert (facts["format"], facts["sides"], facts["coft_eps"]) == ("peft-oft-0.8", ["out"], 0.001)
    assert facts["conversions"]["comfyui"] == "lossless" and facts["conversions"]["peft"] == "impossible"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.unlink(), "There is no adapter at"),
        (lambda path: path.write_bytes(path.read_bytes()[:-3]), "is cut off"),
        (lambda path: path.write_text("not an adapter at all"), "not a safetensors file"),
    ],
)
def test_damage_is_worded(call: Callable, tmp_path: Path, damage: Callable, said: str) -> None:
    path = tmp_path / "style.safetensors"
    path.write_bytes((FIXTURES / "kohya-oft-2024-09" / "plain" / "adapter.safetensors").read_bytes())
    damage(path)
    done = call("identify", path)
    assert done.exit_code == 2 and said in done.stderr and not done.stdout


@pytest.mark.parametrize("verb", ["identify", "inspect"])
def test_what_the_file_does_not_say_can_be_said(call: Callable, verb: str) -> None:
    november = next(one for one in produced() if one.producer == "onetrainer-oftv2-2025-11-14").adapter
    control = FIXTURES / "zeju-oft/control_linear_coft/adapter.safetensors"
    # the older series and the smaller ball leave other rotations of the same numbers
    for path, words in ((november, ("--series", "legacy")), (control, ("--coft", "--eps", "1e-5"))):
        plain, told = (json.loads(call(verb, path, "--json", *more).stdout) for more in ((), words))
        assert plain["orthogonality_error"] != told["orthogonality_error"], words
    done = call(verb, november, "--series", "new")
    assert done.exit_code == 2 and "current or legacy" in done.stderr and not done.stdout
