"""Work that can be counted on a machine whose clock cannot be trusted: ATen calls, calls of Python, saved bytes."""

from __future__ import annotations

import cProfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from harness.cells import Mode
from harness.saved_bytes import saved_bytes
from harness.step import step_of
from harness.subject import Subject
from orthotune.tuner.config import OFTConfig

#: They only describe a tensor anew: no kernel runs.
VIEWS = {"view", "_unsafe_view", "detach", "t", "transpose", "permute", "expand", "unsqueeze", "select", "slice"}


class _Calls(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names[f"{func.namespace}.{func.overloadpacket.__name__}"] += 1
        return func(*args, **(kwargs or {}))


def aten_calls(step: Callable[[], object]) -> Counter[str]:
    """How often each ATen operation runs in ``step()``, the backward's included.

    Example:
        >>> aten_calls(lambda: torch.zeros(2) + 1)
        Counter({'aten.zeros': 1, 'aten.add': 1})
    """
    with _Calls() as counted:
        step()
    return counted.names


def python_calls(step: Callable[[], object]) -> int:
    """How many functions, of Python and built in, are called in ``step()``.

    Example:
        >>> python_calls(lambda: [abs(number) for number in range(10)]) >= 11
        True
    """
    profile = cProfile.Profile()
    profile.runcall(step)
    return sum(entry.callcount for entry in profile.getstats())


@dataclass(frozen=True)
class Work:
    """What adapters add to frozen linear layers, for one step and per layer.

    Args:
        calls: ATen operations, by name; views apart.
        views: calls that only describe a tensor anew.
        saved: bytes kept for the backward, of all the layers together (they share their input); 0 outside training.
    """

    calls: dict[str, float]
    views: dict[str, float]
    saved: int

    @property
    def total(self) -> float:
        """Calls per layer that may run a kernel."""
        return sum(self.calls.values())


class _Shared(nn.Module):
    """``count`` projections of one input, as query, key and value are."""

    def __init__(self, features: int, count: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.projections = nn.ModuleList(nn.Linear(features, features, bias=False, dtype=dtype) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        outputs = [projection(x) for projection in self.projections]
        return torch.cat(outputs, -1)


def added_work(
    mode: Mode, features: int = 64, tokens: int = 24, count: int = 1, dtype: torch.dtype = torch.bfloat16,
    **settings: Any,
) -> Work:  # fmt: skip
    """What ``count`` adapted ``features -> features`` layers of one input do beyond the frozen ones, per layer.

    Args:
        mode: training, evaluation or decoding.
        features: of each layer's input and output.
        tokens: rows of the input.
        count: layers of one input.
        dtype: of the layers and the input.
        **settings: of :class:`OFTConfig`, beside the targets; the block size is 16 unless said.

    Example:
        >>> added_work("train").saved  # the input, 24 x 64 in bfloat16, and R, 4 x 16 x 16 in float32
        7168
    """
    settings = {"oft_block_size": 16, **settings}
    shared = _Shared(features, count, dtype).requires_grad_(False)
    x = torch.randn(1 if mode == "decode" else tokens, features, dtype=dtype, requires_grad=mode == "train")
    frozen = Subject(shared, x, lambda model, x: model(x))
    names = [f"projections.{i}" for i in range(count)]
    adapted = get_peft_model(frozen.twin(), OFTConfig(target_modules=names, **settings))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.01)
    before, after = (_counted(frozen, model.train(mode == "train"), mode) for model in (shared, adapted))
    added = {name: (after[name] - before[name]) / count for name in after if after[name] != before[name]}
    saved = saved_bytes(lambda: adapted(x), adapted) if mode == "train" else 0
    return Work(
        {name: n for name, n in added.items() if not _is_view(name)},
        {name: n for name, n in added.items() if _is_view(name)},
        saved,
    )


def _is_view(name: str) -> bool:
    return name.removeprefix("aten.") in VIEWS


def _counted(subject: Subject, model: nn.Module, mode: Mode) -> Counter[str]:
    step = step_of(subject, model, mode)
    step()  # outside training the rotation is computed at the first call and kept
    if step.before is not None:
        step.before()
    return aten_calls(step.run)
