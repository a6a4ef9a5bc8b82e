"""The small network that encodes a control image as features for the first layer of the denoiser."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from orthotune.errors import AdapterFileError, ConfigError, DataError
from orthotune.files.json_file import read_json, write_json
from orthotune.files.safetensors_file import write_tensors
from orthotune.image.families.family import Family
from orthotune.operations.fitting.components import bare

WEIGHTS, CONFIG = "hint_encoder.safetensors", "hint_encoder.json"
_FIRST_WIDTH, _WIDEST = 16, 256


@dataclass(frozen=True)
class HintShape:
    """The sizes of a hint encoder and the model that it belongs to.

    Args:
        family: name of the model family.
        entry: the denoiser's layer that the features are added to.
        channels: of the output of that layer.
        cell: pixels per position of that output, along one side.
        signal: kind of the control images, such as "canny"; None if unknown.
    """

    family: str
    entry: str
    channels: int
    cell: int
    signal: str | None = None

    def __post_init__(self) -> None:
        for name in ("channels", "cell"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name}={value!r} of a hint encoder", needed="a whole number from 1")

    @classmethod
    def of(cls, family: Family, signal: str | None = None) -> HintShape:
        """The shape for the denoiser of a family.

        Args:
            family: the model.
            signal: kind of the control images.

        Raises:
            ConfigError: the entry layer is neither a convolution nor linear, or the family is not controlled.
        """
        if not family.entry:
            raise ConfigError(
                f"control images for a model of {family.name}", needed="a model of stable-diffusion, sdxl, sd3 or flux"
            )
        layer: Any = entry_of(family.denoiser, family.entry)
        layer = layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer
        channels = getattr(layer, "out_channels", None) or getattr(layer, "out_features", None)
        if channels is None:
            raise ConfigError(f"layer {family.entry!r}", got=type(layer).__name__, needed="a convolution or linear one")
        return cls(family.name, family.entry, int(channels), family.pixels_per_latent * _latents(layer, family), signal)


class HintEncoder(nn.Module):
    """Convolutions from pixels to the grid of the denoiser. The last one starts at zero, so that a new encoder adds 0.

    Shapes: float32 ``[n, 3, H, W]`` of 0..1 -> ``[n, channels, H / cell, W / cell]``.

    Source: the zero convolution is ControlNet's (Zhang et al. 2023, arXiv 2302.05543, section 3.1); that a light
    encoder at the input is enough beside rotated layers, OFT (Qiu et al. 2023, arXiv 2306.07280, section 5).

    Raises:
        DataError: the sides of an image are not multiples of ``cell``.

    Example:
        >>> encoder = HintEncoder(HintShape("stable-diffusion", "conv_in", channels=320, cell=8))
        >>> encoder(torch.rand(2, 3, 64, 48)).shape, encoder(torch.rand(1, 3, 64, 64)).abs().max().item()
        (torch.Size([2, 320, 8, 6]), 0.0)
    """

    def __init__(self, shape: HintShape) -> None:
        super().__init__()
        self.shape = shape
        width = _FIRST_WIDTH
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), nn.SiLU()]
        for stride in _strides(shape.cell):
            wider = min(2 * width, _WIDEST)
            # A stride of two overlaps with its neighbours; a larger stride reads separate cells.
            side, padding = (3, 1) if stride == 2 else (stride, 0)
            layers += [nn.Conv2d(width, wider, side, stride=stride, padding=padding), nn.SiLU()]
            width = wider
        layers += [nn.Conv2d(width, width, 3, padding=1), nn.SiLU()]
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Conv2d(width, shape.channels, 1)
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)

    def forward(self, hints: Tensor) -> Tensor:
        if hints.ndim != 4 or hints.shape[1] != 3 or any(side % self.shape.cell for side in hints.shape[2:]):
            raise DataError(
                "control images", got=f"shape {tuple(hints.shape)}",
                needed=f"[n, 3, height, width], sides multiples of {self.shape.cell} pixels",
            )  # fmt: skip
        features: Tensor = self.head(self.trunk(hints.to(self.head.weight.dtype)))
        return features

    def save(self, folder: Path) -> None:
        """Write ``hint_encoder.safetensors`` and ``hint_encoder.json`` into ``folder``."""
        write_tensors(folder / WEIGHTS, self.state_dict())
        write_json(folder / CONFIG, asdict(self.shape))


def load_hint_encoder(folder: Path) -> HintEncoder:
    """The encoder that ``HintEncoder.save`` wrote into ``folder``, in float32 on the CPU.

    Raises:
        AdapterFileError: a file is missing or damaged, or the two do not match.
    """
    shape = _read_shape(folder / CONFIG)
    with torch.random.fork_rng(devices=[]):  # the initial weights must not change the state of the random generator
        encoder = HintEncoder(shape)
    try:
        state = load_file(folder / WEIGHTS)
    except Exception as fault:  # safetensors has its own exception type besides OSError
        raise AdapterFileError(
            f"{folder / WEIGHTS}", got=str(fault) or type(fault).__name__, needed="the weights of a hint encoder",
            do="Pass the folder that `orthotune train control` wrote",
        ) from fault  # fmt: skip
    wanted = {name: tuple(value.shape) for name, value in encoder.state_dict().items()}
    for name in sorted(wanted.keys() | state.keys()):
        got = tuple(state[name].shape) if name in state else None
        if got != wanted.get(name):
            raise AdapterFileError(
                f"{folder / WEIGHTS}: tensor {name!r}", got=f"shape {got}" if got else "no such tensor",
                needed=f"shape {wanted[name]}, as {CONFIG} says" if name in wanted else f"none, as {CONFIG} says",
            )  # fmt: skip
        if not bool(state[name].isfinite().all()):
            raise AdapterFileError(f"{folder / WEIGHTS}: tensor {name!r}", got="NaN or infinity", do="Train it again")
    encoder.load_state_dict({name: value.float() for name, value in state.items()})
    return encoder.eval()


def check_fits(encoder: HintEncoder, family: Family) -> None:
    """Check that an encoder fits a model.

    Args:
        encoder: the encoder.
        family: the model.

    Raises:
        AdapterFileError: the encoder was made for another kind of denoiser.
    """
    made, needed = encoder.shape, HintShape.of(family)
    if (made.entry, made.channels, made.cell) != (needed.entry, needed.channels, needed.cell):
        raise AdapterFileError(
            f"hint encoder made for {made.family}", got=_description(made),
            needed=f"{_description(needed)}, for this {family.name} model",
            do="Load it on the base model that it was trained on",
        )  # fmt: skip


def entry_of(denoiser: nn.Module, entry: str) -> nn.Module:
    """The layer ``entry`` of a denoiser, with or without PEFT wrappers.

    Args:
        denoiser: the network.
        entry: path of the layer.

    Raises:
        ConfigError: there is no such layer.
    """
    try:
        return bare(denoiser).get_submodule(entry)
    except AttributeError as fault:
        raise ConfigError(f"layer {entry!r} of {type(denoiser).__name__}", got="no such layer") from fault


def _read_shape(path: Path) -> HintShape:
    if not path.is_file():
        # A run directory was given: name the folder inside it.
        inside = [path.parent / name for name in ("adapter", "model") if (path.parent / name / CONFIG).is_file()]
        raise AdapterFileError(
            f"hint encoder in {path.parent}", got=f"no file {path.name}",
            do=f"Pass {inside[0]}" if inside else "Pass the folder that `orthotune train control` wrote",
        )  # fmt: skip
    shape = read_json(path, error=AdapterFileError, needed="the description of a hint encoder")
    try:
        return HintShape(**shape)
    except (ValueError, TypeError) as fault:
        raise AdapterFileError(f"{path}", got=str(fault), needed="the description of a hint encoder") from fault


def _latents(layer: Any, family: Family) -> int:
    """Latents per position of the output of the layer, along one side: the patch size, or 1."""
    if isinstance(layer, nn.Conv2d):
        return int(layer.stride[0])
    # A linear layer reads patches that were moved into channels.
    channels = int(family.pipeline.vae.config.latent_channels)
    return max(1, round((int(layer.in_features) / channels) ** 0.5))


def _strides(cell: int) -> list[int]:
    strides = []
    while cell % 2 == 0:
        strides.append(2)
        cell //= 2
    return strides + [cell] * (cell > 1)


def _description(shape: HintShape) -> str:
    return f"{shape.channels} channels at {shape.entry}, {shape.cell} pixels a cell"
