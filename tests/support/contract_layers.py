"""The registry that the contracts run over: for each layer kind a tiny module, an input batch, and its weights.

Shapes are uneven throughout: in != out, kernels that are not square, overlapping patches, odd batches, more than one
block. A new layer kind joins by one entry of ``KINDS``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import GptOssConfig, MixtralConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.mixtral.modeling_mixtral import MixtralExperts
from transformers.pytorch_utils import Conv1D

Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Turn:
    """One matrix that turns: rows ``rows`` of the base parameter ``parameter``, stored as ``stored``.

    ``part`` is its name in the adapter of the module at ``module``; ``stored`` is how the parameter lies in memory:
    ``(out, in)``, ``(in, out)``, ``(out, in, *kernel)``, ``(in, out, *kernel)`` or one row for each token.
    """

    parameter: str
    stored: Literal["out_in", "in_out", "conv", "conv_transposed", "lookup"] = "out_in"
    part: str = ""
    rows: tuple[int, int] | None = None
    module: str = "layer"


@dataclass(frozen=True)
class Kind:
    """A layer kind: ``build`` gives a fresh module that holds it, ``inputs`` a float32 (or token) batch for it.

    ``free`` are the axes of every input that may have any size, batch and length; none for a module that cannot be
    exported with free sizes.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Inputs]
    turns: tuple[Turn, ...] = (Turn("layer.weight"),)
    targets: dict[str, Any] = field(default_factory=lambda: {"target_modules": ["layer"]})
    block_size: int = 4
    sides: tuple[str, ...] = ("in", "out")
    free: tuple[int, ...] = ()


class Net(nn.Module):
    """A module with one layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.layer(*inputs)


class AttentionNet(Net):
    """Attention whose output alone is returned."""

    def __init__(self, layer: nn.Module, need_weights: bool = False) -> None:
        super().__init__(layer)
        self.need_weights = need_weights

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.layer(*inputs, need_weights=self.need_weights)[0]


class Projections(nn.Module):
    """Query, key and value of one input, which is rotated for all of them together."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = nn.Linear(12, 20), nn.Linear(12, 8), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.q_proj(x), self.k_proj(x), self.v_proj(x)], -1)


class Experts(nn.Module):
    """A hand-made mixture: every expert on every token, weights ``(experts, out, in)`` or ``(experts, in, out)``."""

    def __init__(self, input_first: bool) -> None:
        super().__init__()
        self.input_first = input_first
        shape = (3, 12, 8) if input_first else (3, 8, 12)
        self.weight = nn.Parameter(torch.randn(shape) / 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("ti,eio->teo" if self.input_first else "ti,eoi->teo", x, self.weight)


class Router(nn.Module):
    """A parameter ``(out, in)`` that no linear layer holds."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 12) / 3)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T


def _noisy(module: nn.Module) -> nn.Module:
    """``module`` with every parameter random: transformers leaves some uninitialised, torch leaves some zero."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.4)
    return module


def _batch(*shape: int, count: int = 1) -> Callable[[], Inputs]:
    return lambda: tuple(torch.randn(shape) for _ in range(count))


def _linear(rank: int, bias: bool) -> Kind:
    shape = (*(2, 3, 5)[: rank - 1], 12)
    free = tuple(range(rank - 1))
    return Kind(f"linear_rank{rank}", lambda: Net(nn.Linear(12, 20, bias=bias)), _batch(*shape), free=free)


def _conv(
    name: str, build: Callable[[], nn.Module], *shape: int, block_size: int = 4, free: tuple[int, ...] = (0, 2, 3)
) -> Kind:
    turns = (Turn("layer.weight", "conv"),)
    return Kind(name, lambda: Net(build()), _batch(*shape), turns, block_size=block_size, free=free)


def _packed(width: int, module: str = "layer") -> tuple[Turn, ...]:
    rows = {part: (i * width, (i + 1) * width) for i, part in enumerate("qkv")}
    packed = [Turn(f"{module}.in_proj_weight", part=part, rows=r, module=module) for part, r in rows.items()]
    return (*packed, Turn(f"{module}.out_proj.weight", part="out", module=module))


def _separate() -> tuple[Turn, ...]:
    return (*(Turn(f"layer.{p}_proj_weight", part=p) for p in "qkv"), Turn("layer.out_proj.weight", part="out"))


def _attention(**options: Any) -> Callable[[], nn.Module]:
    return lambda: AttentionNet(_noisy(nn.MultiheadAttention(8, 2, **options)))


def _routed(width: int) -> Callable[[], Inputs]:
    # Every expert is hit; the routing is an input, so that rounding cannot send a token elsewhere.
    experts = torch.tensor([[0, 1], [1, 2], [2, 0], [0, 2], [1, 0]])
    return lambda: (torch.randn(5, width), experts, torch.rand(5, 2) + 0.2)


def _mixtral() -> nn.Module:
    config = MixtralConfig(hidden_size=8, intermediate_size=12, num_local_experts=3)
    config._experts_implementation = "eager"
    return Net(_noisy(MixtralExperts(config)))


def _gpt_oss() -> nn.Module:
    config = GptOssConfig(hidden_size=8, intermediate_size=12, num_local_experts=3)
    config._experts_implementation = "eager"
    return Net(_noisy(GptOssExperts(config)))


def _parameters(*names: str, **more: Any) -> dict[str, Any]:
    return {"target_modules": [], "target_parameters": [f"layer.{name}" for name in names], **more}


_BOTH = ("gate_up_proj", "down_proj")

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in [
        _linear(1, bias=True),
        _linear(2, bias=False),
        _linear(3, bias=True),
        _linear(4, bias=True),
        Kind(
            "transposed_linear",
            lambda: Net(_noisy(Conv1D(20, 12))),
            _batch(3, 5, 12),
            (Turn("layer.weight", "in_out"),),
            free=(0, 1),
        ),
        _conv("conv1d_circular", lambda: nn.Conv1d(6, 8, 4, 2, 3, padding_mode="circular"), 3, 6, 9, free=(0, 2)),
        _conv("conv1d_same", lambda: nn.Conv1d(4, 12, 3, padding="same", dilation=2, bias=False), 4, 9, free=(1,)),
        _conv("conv2d", lambda: nn.Conv2d(4, 8, (3, 2), (2, 1), (2, 1)), 3, 4, 7, 6, block_size=8),
        _conv("conv2d_reflect", lambda: nn.Conv2d(4, 8, (2, 3), 1, (1, 2), (1, 2), padding_mode="reflect"), 1, 4, 6, 7),
        _conv("conv2d_groups", lambda: nn.Conv2d(8, 12, (3, 1), padding=(1, 0), groups=2, bias=False), 3, 8, 5, 4),
        _conv("conv2d_depthwise", lambda: nn.Conv2d(8, 8, (2, 4), groups=8), 2, 8, 5, 6),
        _conv(
            "conv2d_channels_last",
            lambda: nn.Conv2d(4, 8, 3, padding=1).to(memory_format=torch.channels_last),  # type: ignore[call-overload]
            *(3, 4, 7, 6),
        ),
        _conv("conv2d_1x1", lambda: nn.Conv2d(8, 12, 1), 3, 8, 5, 4),
        Kind(
            "conv2d_input_channels",
            lambda: Net(nn.Conv2d(16, 12, (3, 2), (2, 1), (1, 1), groups=2)),
            _batch(3, 16, 5, 4),
            (Turn("layer.weight", "conv"),),
            {"target_modules": ["layer"], "conv": "channels"},
            sides=("in",),
            free=(0, 2, 3),
        ),
        Kind(
            "conv1d_transposed",
            lambda: Net(nn.ConvTranspose1d(6, 8, 4, 3, 1, 2)),
            _batch(3, 6, 5),
            (Turn("layer.weight", "conv_transposed"),),
            sides=("out",),  # the other layouts: tests/layers/test_conv.py
            free=(0, 2),
        ),
        _conv("conv3d", lambda: nn.Conv3d(2, 8, (2, 1, 3), (1, 2, 1), (1, 0, 1)), 1, 2, 4, 3, 5, free=(0,)),
        Kind(
            "embedding",
            lambda: Net(nn.Embedding(11, 12, padding_idx=2)),
            lambda: (torch.tensor([[0, 2, 5, 10, 3], [1, 1, 4, 2, 7], [6, 8, 9, 0, 10]]),),
            (Turn("layer.weight", "lookup"),),
            sides=("in",),
            free=(0, 1),
        ),
        Kind("attention", _attention(), _batch(5, 3, 8, count=3), _packed(8)),
        Kind(
            "attention_batch_first",
            _attention(batch_first=True, bias=False),
            _batch(3, 5, 8, count=3),
            _packed(8),
            free=(0, 1),
        ),
        Kind(
            "attention_separate",
            lambda: AttentionNet(_noisy(nn.MultiheadAttention(8, 2, kdim=12, vdim=16, batch_first=True)), True),
            lambda: (torch.randn(3, 5, 8), torch.randn(3, 7, 12), torch.randn(3, 7, 16)),
            _separate(),
        ),
        Kind(
            "attention_output",
            _attention(),
            _batch(5, 3, 8, count=3),
            (Turn("layer.out_proj.weight", module="layer.out_proj"),),
            {"target_modules": ["out_proj"]},
        ),
        Kind(
            "encoder_layer",
            lambda: Net(nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, activation="gelu", batch_first=True)),
            _batch(3, 5, 8),
            (
                *_packed(8, "layer.self_attn"),
                Turn("layer.linear1.weight", module="layer.linear1"),
                Turn("layer.linear2.weight", module="layer.linear2"),
            ),
            {"target_modules": ["self_attn", "linear1", "linear2"]},
            free=(0, 1),
        ),
        Kind("experts", lambda: Net(Experts(False)), _batch(5, 12), targets=_parameters("weight"), free=(0,)),
        Kind(
            "experts_input_first",
            lambda: Net(Experts(True)),
            _batch(5, 12),
            (Turn("layer.weight", "in_out"),),
            _parameters("weight", fan_in_fan_out=True),
            free=(0,),
        ),
        Kind("parameter", lambda: Net(Router()), _batch(5, 12), targets=_parameters("weight"), free=(0,)),
        Kind("mixtral_experts", _mixtral, _routed(8), tuple(Turn(f"layer.{n}") for n in _BOTH), _parameters(*_BOTH)),
        Kind(
            "gpt_oss_experts",
            _gpt_oss,
            _routed(8),
            tuple(Turn(f"layer.{name}", "in_out") for name in _BOTH),
            _parameters(*_BOTH),
        ),
    ]
}
