"""What every recipe for models with a head promises: checked on finished runs of tiny models."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from orthotune import PeftModel
from orthotune.operations.merge import merge
from orthotune.runs.checkpoint_on_signal import Stopped

#: What differs is the order of float32 sums: a merged weight is rotated once, the inputs of an adapted layer each time.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


class StopAt(TrainerCallback):
    """Sends the signal with which a machine is shut down before a step ends."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **seen: Any) -> None:
        if state.global_step + 1 == self.step:
            signal.raise_signal(signal.SIGTERM)


def silent(message: str) -> None:
    """Drop the message."""


def weights(output: Path) -> dict[str, torch.Tensor]:
    """What a run wrote: its adapter, or the complete model."""
    adapter = output / "adapter" / "adapter_model.safetensors"
    return load_file(adapter if adapter.is_file() else output / "model" / "model.safetensors")


def check_resumed(run: Callable[..., Any], settings: Any, complete: Path) -> None:
    """A run that a signal cut after two steps, and that went on, wrote the bits of the run in ``complete``."""
    with pytest.raises(Stopped):
        run(settings, say=silent, callbacks=[StopAt(2)], bar=False)
    run(settings.model_copy(update={"resume": "auto"}), say=silent, bar=False)
    expected, found = weights(complete), weights(settings.output)
    assert expected and expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def lines(output: Path) -> list[dict[str, Any]]:
    """The lines of metrics, without their times."""
    found = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in found]


def reloaded(kind: Any, base: Any, output: Path) -> Any:
    """The result of a run as a user loads it: the base with the config of the adapter, then the adapter."""
    from transformers import AutoConfig

    if (output / "model").is_dir():
        return kind.from_pretrained(output / "model").eval()
    config = AutoConfig.from_pretrained(output / "adapter" / "base")
    return PeftModel.from_pretrained(kind.from_pretrained(base, config=config), output / "adapter").eval()


def merged(kind: Any, output: Path, out: Path) -> Any:
    """The result of a run with an adapter, merged by the operation and loaded as an ordinary model."""
    return kind.from_pretrained(merge(output, out)).eval()
