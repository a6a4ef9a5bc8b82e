"""The scale of each layer of a LoRA is PEFT's."""

from __future__ import annotations

from pathlib import Path

import peft
from torch import nn

from orthotune.operations.lora_file import lora_at


def test_keys_of_alpha_pattern_are_expressions_as_in_peft(tmp_path: Path) -> None:
    net = nn.ModuleDict({"a": nn.ModuleDict({"q": nn.Linear(4, 4)}), "ba": nn.ModuleDict({"q": nn.Linear(4, 4)})})
    net.forward = lambda x: net["ba"]["q"](net["a"]["q"](x))  # type: ignore[method-assign]
    pattern = {"^a\\.q": 6, "b.\\.q": 10}
    config = peft.LoraConfig(r=2, lora_alpha=4, alpha_pattern=pattern, target_modules=["q"])
    model = peft.get_peft_model(net, config)
    model.save_pretrained(tmp_path)
    lora = lora_at(tmp_path)
    assert lora is not None
    found = {name.removeprefix("base_model.model."): lora.scale(name) for name in lora.layers}
    wanted = {name: model.base_model.model.get_submodule(name).scaling["default"] for name in found}
    assert found == wanted == {"a.q": 3.0, "ba.q": 5.0}
