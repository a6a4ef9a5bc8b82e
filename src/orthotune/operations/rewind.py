"""``rewind``: write an adapter at other strengths than it was trained, one for each layer."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from orthotune.errors import AdapterFileError, ConfigError, OrthotuneError, UnsupportedLayerError, nearest
from orthotune.files.atomic import write_text
from orthotune.files.json_file import read_json
from orthotune.files.names import shortened
from orthotune.files.output import new_folder
from orthotune.files.run_adapter import adapter_in
from orthotune.files.safetensors_file import read_tensors, write_tensors
from orthotune.formats.adapter_file import CONFIG_NAME, WEIGHTS_NAME
from orthotune.formats.adapter_state import AdapterState, LayerState
from orthotune.formats.writers import of_stock, write_folder
from orthotune.operations.adapter import read_once
from orthotune.operations.other_methods import LORA_B, other_method
from orthotune.rotation.family import FamilyTransform, refuse_form
from orthotune.tuner.combination import Combination, warn_series


@dataclass(frozen=True)
class Rewound:
    """What :func:`rewind` wrote.

    Attributes:
        out: the folder.
        strengths: layer -> the strength that it has now.
        notes: warnings about the result.
    """

    out: Path
    strengths: Mapping[str, float]
    notes: tuple[str, ...] = ()


def rewind(
    adapter: str | Path, strengths: float | Mapping[str, float], out: str | Path, *, overwrite: bool = False
) -> Rewound:
    """Write an adapter at chosen strengths: what it does at strength 1 is what the given one does at these.

    A rotation becomes ``R^t`` and a magnitude ``m^t``, exactly, as parameters of the same kind; a LoRA's change is
    multiplied by ``t``. Other transforms than blocks are written at a strength where their powers have the form of the
    transform. Those of a butterfly of several stages and of Givens stages are rotations of larger blocks, and are
    written as blocks, at strength 1 too. The new adapter loads, merges and converts like any other.

    Args:
        adapter: a file or folder of any readable format, or a folder with a LoRA of PEFT.
        strengths: one for all layers, or layer -> strength for some of them; the others keep 1. 0 is the base.
        out: folder of the new adapter; it appears when it is complete.
        overwrite: replace what is at ``out``.

    Returns:
        The folder, and the strength of every layer.

    Raises:
        ConfigError: a strength that is no finite number, or of a layer that the adapter does not have.
        AdapterFileError: the adapter is damaged, or holds more than rotations or LoRA's factors.
        UnsupportedLayerError: a magnitude that has no power, an angle of pi, a transform whose powers have another
            form.
        OutputError: ``out`` exists already or cannot be written to.

    Source: a geodesic from the base to the adapter, docs/concepts/strength.md; "rewinding" after PEFT-Arena
    (arXiv 2605.28819).

    Example:
        >>> import tempfile, torch
        >>> from orthotune import AdapterState, read_adapter, write_adapter
        >>> from orthotune.formats.adapter_state import LayerState
        >>> folder = Path(tempfile.mkdtemp())
        >>> quarter = LayerState({"": torch.ones(2, 1)})
        >>> path = write_adapter(AdapterState({"blk.lin": quarter}), folder / "trained", "orthotune")
        >>> done = rewind(folder / "trained", 0.5, folder / "rewound")
        >>> read_adapter(done.out).layers["blk.lin"].rotation()[0]  # 45 degrees remain of 90
        tensor([[ 0.7071, -0.7071],
                [ 0.7071,  0.7071]])
    """
    out, adapter = Path(out), adapter_in(adapter)
    if (method := other_method(adapter)) is not None:
        if method != "LORA":
            raise AdapterFileError(f"{adapter}", got=f"peft_type {method!r}", needed="rotations, or a LoRA")
        return _lora(adapter, strengths, out, overwrite)
    state = read_once(adapter).state
    found = _of_layers([*state.layers, *state.transforms], strengths)
    if frozen := [name for name, held in state.transforms.items() if not isinstance(held, FamilyTransform)]:
        raise AdapterFileError(
            f"{adapter}", got=f"layers that no transform represents: {shortened(frozen)}",
            needed="rotations", do="Merge the adapter at a strength: orthotune merge --strength T",
        )  # fmt: skip
    if state.other:
        raise AdapterFileError(
            f"{adapter}", got=f"{len(state.other)} tensors that are not rotations: {shortened(state.other)}",
            needed="rotations only: a strength says nothing of modules that were trained in full beside them",
        )  # fmt: skip
    layers: dict[str, Any] = {}
    off = {}
    for name, layer in state.layers.items():
        held = layer.for_weight((1,) * layer.dims) if layer.dims else layer
        layers[name], off[name] = Combination((found[name],)).joint(name, [held])
    transforms = {}
    for name, transform in state.transforms.items():
        at = _family_at(name, transform, found[name], bool(state.config.get("target_parameters")))
        if isinstance(at, LayerState):
            layers[name] = at
        else:
            transforms[name] = at
    with new_folder(out, overwrite=overwrite) as folder:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warn_series(off)
        config = {key: state.config[key] for key in ("task_type", "base_model_name_or_path") if state.config.get(key)}
        rewound = AdapterState(layers, config, transforms=transforms, prefixes=state.prefixes, format=state.format)
        write_folder(rewound, folder, stock=of_stock([state]))
    return Rewound(out, found, tuple(str(one.message) for one in caught))


def _family_at(name: str, held: Any, t: float, experts: bool) -> FamilyTransform | LayerState:
    """A transform at a strength: in its own form, or as plain blocks where its powers are these."""
    try:
        if experts and held.spec.factors > 1:
            refuse_form(t, f"stacks of experts under {held.spec.factors} stages")
        blocks = held.as_blocks(t)
        if blocks is None:
            found: FamilyTransform = held.at(t)
            return found
        spec, numbers = blocks
        scale = held.magnitude
        if scale is not None and t != 1:
            if bool((scale <= 0).any()):
                raise OrthotuneError(f"strength {t:g}", got="a magnitude of 0 or below, which has no logarithm")
            scale = scale.double().pow(t).to(scale.dtype)
        return LayerState({"": numbers}, spec, scale, held.embedding, blend=held.blend, dims=held.dims)
    except OrthotuneError as error:
        raise UnsupportedLayerError(
            f"layer '{name}': {error.given}", got=error.got, needed=error.needed, do=error.do
        ) from error


def _lora(source: Path, strengths: float | Mapping[str, float], out: Path, overwrite: bool) -> Rewound:
    config = read_json(source / CONFIG_NAME, error=AdapterFileError)
    refused = [key for key in ("use_dora", "modules_to_save") if config.get(key)]
    refused += ["bias"] if config.get("bias", "none") != "none" else []
    if refused:
        raise AdapterFileError(f"{source}", got=f"a LoRA with {refused[0]}, which has no strength", needed="a LoRA")
    if not (source / WEIGHTS_NAME).is_file():
        raise AdapterFileError(f"{source}", got=f"no file {WEIGHTS_NAME}", needed="a LoRA as PEFT saves it")
    tensors = read_tensors(source / WEIGHTS_NAME)
    layer_of = {key: key.removeprefix("base_model.model.").removesuffix(end) for key in tensors for end in LORA_B
                if key.endswith(end)}  # fmt: skip
    found = _of_layers(list(layer_of.values()), strengths)
    scaled: dict[str, Tensor] = {
        key: tensor * found[layer_of[key]] if key in layer_of else tensor for key, tensor in tensors.items()
    }
    with new_folder(out, overwrite=overwrite) as folder:
        write_tensors(folder / WEIGHTS_NAME, scaled, {"format": "pt"})
        write_text(folder / CONFIG_NAME, json.dumps(config, indent=2) + "\n")
    return Rewound(out, found)


def check_strengths(names: Sequence[str], strengths: Mapping[str, float]) -> None:
    """Refuse strengths of layers that an adapter does not have, and strengths that are no numbers.

    Args:
        names: of the adapter's layers.
        strengths: by layer.

    Raises:
        ConfigError: the layer, and the nearest name.

    Example:
        >>> check_strengths(["model.layers.0.mlp.up_proj"], {"model.layers.0.mlp.up_proj": 0.5})
    """
    for name, t in strengths.items():
        if name not in names:
            close = nearest(name, names, count=1)
            do = f"Did you mean {close[0]!r}?" if close else f"It has {len(names)} layers: {shortened(list(names))}"
            raise ConfigError(f"the strength of layer '{name}'", got="no such layer in the adapter", do=do)
        if isinstance(t, bool) or not isinstance(t, int | float) or not math.isfinite(t):
            raise ConfigError(f"strength {t!r} of layer '{name}'", needed="a finite number")


def _of_layers(names: list[str], strengths: float | Mapping[str, float]) -> dict[str, float]:
    given = dict(strengths) if isinstance(strengths, Mapping) else dict.fromkeys(names, strengths)
    check_strengths(names, given)
    return {name: float(given.get(name, 1.0)) for name in names}
