"""What the adapter of a settings file or a preset can become, before anything is trained."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from orthotune.errors import RecipeError
from orthotune.formats.adapter_state import AdapterState, LayerState
from orthotune.formats.convert import plan
from orthotune.formats.kinds import kind_of
from orthotune.formats.registry import targets
from orthotune.recipes import load, preset
from orthotune.recipes.image_settings import MADE_FOR
from orthotune.recipes.method_settings import METHODS
from orthotune.rotation.family_registry import PUBLISHED, family_of
from orthotune.runs.adapters import rotation_config


@dataclass(frozen=True)
class Becomes:
    """The result of :func:`what_it_becomes`.

    Attributes:
        source: the file or preset.
        method: ``oft``, ``coft``, ``lora`` or ``full``.
        kind: of all layers, as in the table of conversions; None for other methods than rotations.
        conversions: target -> ``lossless``, ``approximate`` or ``impossible``.
    """

    source: str
    method: str
    kind: str | None
    conversions: dict[str, str]


def is_settings(given: str | Path) -> bool:
    """Whether this names a settings file or a preset, and not an adapter.

    Example:
        >>> is_settings("subject/sdxl"), is_settings("style.safetensors")
        (True, False)
    """
    path = Path(given)
    if path.exists():
        return path.is_file() and path.suffix in (".yaml", ".yml")
    recipe, _, name = str(given).rpartition("/")
    return (recipe or preset.SFT) in preset.recipes() and name in preset.names(recipe or preset.SFT)


def what_it_becomes(given: str | Path) -> Becomes:
    """The formats into which an adapter that is trained with these settings can be converted.

    Args:
        given: a settings file, or a preset such as ``subject/sdxl``.

    Returns:
        The verdicts for linear layers; they depend on the side, the map and the magnitudes alone.

    Raises:
        RecipeError: the file is unreadable, or an option of the rotation is unknown.

    Example:
        >>> found = what_it_becomes("subject/sdxl")
        >>> found.kind, found.conversions["peft"], found.conversions["comfyui"]
        ('in exact', 'lossless', 'impossible')
    """
    values = _values(given)
    method = str(values.get("method", "oft"))
    if method not in METHODS:
        raise RecipeError(f"method={method}", needed=f"one of {', '.join(METHODS)}")
    if not isinstance(values.get("rotation") or {}, dict):
        raise RecipeError(f"rotation={values['rotation']!r}", needed="options of OFTConfig, as rotation: {side: out}")
    if method not in ("oft", "coft"):
        return Becomes(str(given), method, None, {})
    named = {key: values[key] for key in ("transform", "variant", "factors") if values.get(key) is not None}
    options = {**(values.get("rotation") or {}), **named}
    wanted = values.get("for", values.get("made_for"))
    if wanted is not None and wanted not in MADE_FOR:
        raise RecipeError(f"for={wanted}", needed=f"one of {', '.join(MADE_FOR)}")
    options = (MADE_FOR[wanted] if wanted is not None else {}) | options
    state = _of_one_layer(options, coft=method == "coft")
    verdicts = {target: str(plan(state, target, {"a": (8, 8)}, linear=True).verdict) for target in targets()}
    layer: Any = next(iter([*state.layers.values(), *state.transforms.values()]))
    return Becomes(str(given), method, kind_of(layer), verdicts)


def _of_one_layer(options: dict[str, Any], coft: bool) -> AdapterState:
    """An adapter of one layer of eight features, with the sizes that a small layer allows."""
    kind = family_of(PUBLISHED.get(str(options.get("transform", "blocks")), (options.get("transform", "blocks"),))[0])
    size: dict[str, Any] = {"r": 4} if kind is not None and kind.ranked else {"block_size": 4}
    config: Any = rotation_config(["a"], coft=coft, options=options, **size)
    spec = config.spec_for("a")
    magnitude = torch.full((8,), 2.0) if spec.magnitude else None
    if kind is None:  # two blocks of side 4, which have 6 parameters each
        layer = LayerState({"": torch.full((2, 6), 0.1)}, replace(spec, block_size=4), magnitude, dims=2)
        return AdapterState({"a": layer})
    spec = replace(spec, **({"rank": 4} if kind.ranked else {"block_size": 4}))
    basis = torch.eye(8)[:4] if kind.needs_basis else None
    held = kind(spec, torch.full(kind.sizes(8, spec).shape, 0.1), magnitude, dims=2, basis=basis)
    return AdapterState({}, transforms={"a": held})


def _values(given: str | Path) -> dict[str, Any]:
    path = Path(given)
    if not path.exists():
        recipe, _, name = str(given).rpartition("/")
        return preset.settings_of(name, recipe or preset.SFT)
    values = load.read(path, []).values
    named = values.get("preset")
    if isinstance(named, str):
        for recipe in preset.recipes():
            if named in preset.names(recipe):
                filled: dict[str, Any] = yaml.safe_load(preset.read(named, recipe).text)
                return filled | values
    return values
