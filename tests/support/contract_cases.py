"""What every contract needs: the cases it runs over, an adapted model for each, and what rounding may do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from orthotune import OFTConfig, get_peft_model
from orthotune.layers.base import OFTLayer
from orthotune.rotation.frozen import Blocks
from tests.support.contract_layers import KINDS, Inputs, Kind, Projections, Turn

OPTIONS: dict[str, dict[str, Any]] = {
    "exact": {},
    "shared": {"block_share": True},
    "neumann": {"use_cayley_neumann": True},
    "legacy": {"use_cayley_neumann": True, "num_cayley_neumann_terms": 4, "neumann_series": "legacy"},
    "magnitude": {"magnitude": True},
    "scaled": {"scaled": True},
    "coft": {"coft": True, "eps": 0.6},
    "together": {"block_share": True, "magnitude": True, "scaled": True, "coft": True, "eps": 0.6},
}
#: transforms besides blocks, as arguments of their configs: one line gives a transform the contracts
TRANSFORMS: dict[str, dict[str, Any]] = {
    "reflections": {"transform": "reflections", "r": 4},
    "butterfly": {"transform": "butterfly", "oft_block_size": 2, "factors": 2},
    "angles": {"transform": "planes", "oft_block_size": 4},
    "road": {"transform": "planes", "variant": "road_2", "oft_block_size": 2},
    "givens": {"transform": "givens", "oft_block_size": 4},
    "psoft": {"transform": "subspace", "variant": "psoft", "r": 4},
    "ether": {"transform": "hyperplane", "oft_block_size": 4},
}
#: kinds and sides that every transform runs on: each way in which a layer applies one
CARRIERS = (
    ("linear_rank3", "in"), ("linear_rank2", "out"), ("transposed_linear", "in"), ("conv2d", "in"),
    ("conv2d_1x1", "in"), ("embedding", "in"), ("experts", "out"),
)  # fmt: skip
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The same random numbers every time, of the processor alone: a seed for all devices takes a millisecond."""
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(seed)
        yield


@dataclass(frozen=True)
class Case:
    """A layer kind under one choice of options."""

    kind: Kind
    side: str = "in"
    options: str = "exact"
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        return "-".join([self.kind.name, self.side, self.options, str(self.dtype).removeprefix("torch.")])

    @property
    def config(self) -> dict[str, Any]:
        """Arguments of the adapter's ``OFTConfig``."""
        own = TRANSFORMS.get(self.options) or OPTIONS[self.options]
        size = {} if "r" in own else {"oft_block_size": self.kind.block_size}
        return size | {"side": self.side} | self.kind.targets | own

    def base(self) -> nn.Module:
        """The module before it is adapted, frozen as a host freezes it, the same numbers every time."""
        with seeded(1):
            return self.kind.build().to(self.dtype).eval().requires_grad_(False)

    def inputs(self) -> Inputs:
        """The batch, the same numbers every time."""
        with seeded(2):
            return tuple(x.to(self.dtype) if x.is_floating_point() else x for x in self.kind.inputs())

    def fresh(self) -> PeftModel:
        """The module with an untouched adapter, in evaluation."""
        return get_peft_model(self.base(), OFTConfig(**self.config)).eval()

    def trained(self) -> PeftModel:
        """The module with an adapter that turns every block."""
        return randomize(self.fresh())

    def bias_roundings(self) -> int:
        """Roundings by which a bias that is added apart from the product may differ from one inside it.

        One for the sum and one for the bias; a convolution's library may begin its sums with the bias, so that every
        partial sum is rounded elsewhere: up to 6 were counted over 50 convolutions of 54 terms.
        """
        return 8 if self.side == "out" and self.kind.name.startswith("conv") else 2

    def close(self, found: Tensor, expected: Tensor, roundings: int = 8) -> None:
        """``found`` is ``expected`` up to ``roundings`` roundings of the case's dtype, relative to the largest value.

        The default: the rotation, the turned input (or weight), the product and the bias are each rounded once on both
        sides; attention and encoder layers chain several of them and pass more.
        """
        within_rounding(found, expected, self.dtype, roundings * (4 if len(self.kind.turns) > 1 else 1))


def within_rounding(found: Tensor, expected: Tensor, dtype: torch.dtype, roundings: int) -> None:
    """The largest difference is at most ``roundings`` units in the last place of the largest value."""
    assert found.shape == expected.shape
    limit = roundings * torch.finfo(dtype).eps * expected.abs().max().item()
    error = (found.double() - expected.double()).abs().max().item()
    assert error <= limit, f"error {error:.3g}, allowed {limit:.3g} for values up to {expected.abs().max():.3g}"


def randomize(model: nn.Module, seed: int = 3, adapter: str = "default") -> Any:
    """``model`` with seeded noise in every parameter of ``adapter``, about half a radian for each plane."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "oft_magnitude." + adapter in name:
                parameter.copy_(1 + 0.3 * torch.randn(parameter.shape, generator=generator))
            elif "oft_" in name and f".{adapter}." in name:
                rotation = model.get_submodule(name.rpartition(".")[0])
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_((0.2 if rotation.spec.transform == "blocks" else 0.4) * noise / rotation.spec.scale)
    return model


def cases(*options: str, dtypes: tuple[torch.dtype, ...] = (torch.float32,)) -> list[Case]:
    """Every kind and side under ``options`` (all when none is named) in ``dtypes``."""
    return [
        Case(kind, side, option, dtype)
        for kind in KINDS.values()
        for side in kind.sides
        for option in options or OPTIONS
        for dtype in dtypes
    ]


def transformed(*kinds: str, dtypes: tuple[torch.dtype, ...] = (torch.float32,)) -> list[Case]:
    """Every transform of :data:`TRANSFORMS` on :data:`CARRIERS`, or on those of them that are named."""
    return [
        Case(KINDS[kind], side, name, dtype)
        for name in TRANSFORMS
        for kind, side in CARRIERS
        if not kinds or kind in kinds
        for dtype in dtypes
    ]


def every_case() -> list[Case]:
    """Every kind, side and option in float32; in the other dtypes the plainest and the fullest option."""
    return cases() + cases("exact", "together", dtypes=DTYPES[1:])


def switched_cases() -> list[Case]:
    """Every kind and side in every dtype, for what does not depend on the map: switching off, merging and back.

    In float32 the exact map, a series, and all options together stand for each option alone, which
    :func:`every_case` has.
    """
    return cases("exact", "neumann", "together") + cases("exact", "together", dtypes=DTYPES[1:])


def plain_and_full() -> list[Case]:
    """Every kind, its inputs turned plainly, its outputs (or its inputs once more) with every option at once."""
    found = [case for case in cases("exact", "together") if (case.options == "exact") == (case.side == "in")]
    return found + [case for case in cases("together") if case.kind.sides == ("in",)]


def batched(case: Case) -> Inputs:
    """The inputs of ``case``, with a batch as their first dimension where it has none."""
    inputs = case.inputs()
    return (inputs[0][None],) if case.kind.name in ("conv1d_same", "linear_rank1") else inputs


#: adapters of :func:`several`
NAMES = ("default", "second", "third")


def several(case: Case, frozen: str = "") -> tuple[PeftModel, dict[str, dict[str, Any]]]:
    """Three adapters of unlike size, side and options on one module, and the arguments of their configs.

    The adapter ``frozen`` is a map of the weight as a file brings it, wherever a layer can hold one. Its config says
    the map's numbers under "frozen".
    """
    others = ("transform", "variant", "factors", "r")
    blocks = {name: value for name, value in case.config.items() if name not in others}
    second = {"side": case.kind.sides[-1], "magnitude": True, "block_share": True, "oft_block_size": 2}
    third = {"side": "in", "oft_block_size": 2, "use_cayley_neumann": True}
    configs = {"default": case.config, "second": blocks | second, "third": blocks | third}
    model = case.trained()
    for seed, name in enumerate(NAMES[1:]):
        config = OFTConfig(**configs[name])
        if name == frozen:
            maps = {turn: frozen_map(case, turn, configs[name]) for turn in frozen_turns(case)}
            held_by = {turn.module: held for turn, held in maps.items()}
            config.load_context = replace(config.load_context, frozen_maps=held_by)
            configs[name] = configs[name] | {"frozen": maps}
        model.add_adapter(name, config)
        randomize(model, seed=7 + seed, adapter=name)
    return model.eval(), configs


def frozen_turns(case: Case) -> list[Turn]:
    """The matrices of ``case`` that can be under a frozen map: those of linear layers and convolutions."""
    layers = dict(case.base().named_modules())
    return [t for t in case.kind.turns if isinstance(layers.get(t.module), (nn.Linear, Conv1D, *CONVOLUTIONS))]


def frozen_map(case: Case, turn: Turn, config: dict[str, Any]) -> Blocks:
    """Blocks of 2 that are not orthogonal, for the matrix of ``turn``, on the side that ``config`` says."""
    W = dict(case.base().named_parameters())[turn.parameter]
    W = W.transpose(0, 1) if turn.stored in ("in_out", "conv_transposed") else W
    out, fan_in = W.flatten(1).shape
    generator = torch.Generator().manual_seed(13)
    noise = torch.randn((fan_in if config["side"] == "in" else out) // 2, 2, 2, generator=generator)
    scale = 1 + 0.3 * torch.randn(out, generator=generator) if config.get("magnitude") else None
    return Blocks(torch.eye(2) + 0.4 * noise, config["side"], scale)


def one_set_of_weights(case: Case) -> bool:
    """Whether a layer of ``case`` only calls its base with rotated weights, and so refuses mixed batches."""
    layers = [module for module in case.fresh().modules() if isinstance(module, OFTLayer)]
    return any(type(layer).forward is OFTLayer.forward for layer in layers)


def two_alike(case: Case) -> PeftModel:
    """``case`` with a second adapter ``other`` of the same config and other numbers."""
    model = case.trained()
    model.add_adapter("other", OFTConfig(**case.config))
    return randomize(model, seed=8, adapter="other").eval()


def projections(**fields: Any) -> PeftModel:
    """:class:`~contracts.layers.Projections` with an adapter on each of the three."""
    with seeded(1):
        base = Projections()
    config = OFTConfig(oft_block_size=4, target_modules=["q_proj", "k_proj", "v_proj"], **fields)
    return randomize(get_peft_model(base, config))


def rotation_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The adapters' parameters by name."""
    return {name: p for name, p in model.named_parameters() if "oft_" in name}


def base_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """All other parameters by name."""
    return {name: p for name, p in model.named_parameters() if "oft_" not in name}


def snapshot(parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """Copies of the numbers."""
    return {name: p.detach().clone() for name, p in parameters.items()}


def same_bits(found: dict[str, nn.Parameter], expected: dict[str, Tensor]) -> None:
    """The same names, and the same numbers bit for bit."""
    assert found.keys() == expected.keys()
    changed = [name for name, value in expected.items() if not torch.equal(found[name], value)]
    assert not changed
    assert all(found[name].dtype == value.dtype for name, value in expected.items())
