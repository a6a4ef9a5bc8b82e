"""Translate layer names between the spellings of the tools."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from orthotune.errors import UnsupportedLayerError
from orthotune.files.names import shortened
from orthotune.formats.format import Format
from orthotune.formats.names.comfyui import denoiser_name, encoder_name, is_known
from orthotune.formats.names.modules import match_names, name_in_tools
from orthotune.formats.names.original import Original, candidates, original_of
from orthotune.formats.peft.names import PREFIX as PEFT
from orthotune.formats.registry import prefixes, targets


@dataclass(frozen=True)
class Spelling:
    """The names of an adapter's layers in the file of a target that uses one name for each layer.

    Attributes:
        names: layer -> name in the file. Layers that are rows of one original layer have the same name.
        parts: name in the file -> the layers of the model that it means, as ``(component, module)`` in the order of its
            rows, where these are several.
        places: layer -> component and module, as far as they are known.
        swapped: layers whose two halves of rows have changed places in the model of the tool.
        known: number of layers whose names the tool knows; None if no map of its names covers the model.
        unknown: layers whose names the tool does not know and will ignore.
    """

    names: dict[str, str]
    parts: dict[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)
    places: dict[str, tuple[str, str]] = field(default_factory=dict)
    swapped: frozenset[str] = frozenset()
    known: int | None = None
    unknown: tuple[str, ...] = ()


def spelled(stems: Iterable[str], target: str, modules: Mapping[str, Iterable[str]] | None = None) -> Spelling:
    """The names of layers in the file of a target that uses one name for each layer.

    Args:
        stems: layer names in the source file.
        target: id of the format that is written.
        modules: component -> modules of the base; None if the base is unknown.

    Raises:
        UnsupportedLayerError: the target has no name for a component, two layers would have the same name, or the names
            depend on the model, which is unknown.

    Example:
        >>> spelled(["oft_unet_mid_block_conv", "unet.conv_in"], "comfyui").names
        {'oft_unet_mid_block_conv': 'lora_unet_mid_block_conv', 'unet.conv_in': 'lora_unet_conv_in'}
        >>> spelled(["joint_transformer_blocks.0.attn.to_q"], "kohya-oft-v2").names
        {'joint_transformer_blocks.0.attn.to_q': 'lora_unet_double_layers_0_attn_w2q'}
    """
    stems = list(stems)
    where = {stem: component_of(stem) for stem in stems} if modules is None else places(stems, modules)
    return spelled_places(where, target, modules)


def spellings(stems: Iterable[str], target: str) -> list[Spelling]:
    """The names of layers in the file of a target, for each family of models that has such layers.

    For a program that knows which model it has, and which of these names are its own.

    Args:
        stems: layer names in the source file.
        target: id of the format that is written.

    Returns:
        At least one.

    Raises:
        UnsupportedLayerError: the target has no name for a component, or two layers would have the same name.

    Example:
        >>> found = spellings(["transformer.transformer_blocks.0.attn.to_q"], "comfyui")
        >>> len(found) > 1, found[0].names["transformer.transformer_blocks.0.attn.to_q"]
        (True, 'lycoris_transformer_blocks_0_attn_to_q')
    """
    where = {stem: component_of(stem) for stem in stems}
    return [_spelled(where, targets()[target], family, None) for family in _families(where, None)]


def spelled_places(
    where: Mapping[str, tuple[str, str]], target: str, modules: Mapping[str, Iterable[str]] | None = None
) -> Spelling:
    """Like :func:`spelled`, for layers whose component and module are known.

    Args:
        where: layer -> component and module.
        target: id of the format that is written.
        modules: component -> modules of the base; None if the base is unknown.

    Raises:
        UnsupportedLayerError: as for :func:`spelled`.
    """
    format = targets()[target]
    inside = None if modules is None else {component: list(names) for component, names in modules.items()}
    families = _families(where, inside)
    first, *others = [_spelled(where, format, family, inside) for family in families]
    if any(other.names != first.names for other in others):
        named = ", ".join(family.family for family in families if family is not None)
        raise UnsupportedLayerError(
            f"the names of the layers for {format.tool}", got=f"{shortened(where)}, which models of {named} have",
            needed="the model, as each of them has other names there", do="Name the base with --base",
        )  # fmt: skip
    alone = {stem: name for stem, name in first.names.items() if name not in first.parts}
    _refuse_duplicates(alone)
    return first


def _families(where: Mapping[str, tuple[str, str]], inside: Mapping[str, list[str]] | None) -> list[Original | None]:
    """The families whose names the layers can have; for a known base, the one that it belongs to."""
    if inside is not None:
        found = [one for component, names in inside.items() if _denoises(component) and (one := original_of(names))]
        return [found[0] if found else None]
    rests = [rest for stem, (component, rest) in where.items() if _denoises(component) and "." in rest]
    return [*candidates(rests)] or [None]


def _spelled(
    where: Mapping[str, tuple[str, str]], format: Format, family: Original | None,
    inside: Mapping[str, list[str]] | None,
) -> Spelling:  # fmt: skip
    encoders = [component for component, _ in where.values() if component.startswith("text_encoder")]
    encoders += [component for component in inside or () if component.startswith("text_encoder")]
    names: dict[str, str] = {}
    parts: dict[str, tuple[tuple[str, str], ...]] = {}
    known: dict[str, bool | None] = {}
    swapped = set()
    unet = [rest for component, rest in where.values() if _denoises(component)]
    unet = [name for part, own in (inside or {}).items() if _denoises(part) for name in own] or unet
    for stem, (component, rest) in where.items():
        if stem.startswith(format.kept) and "." not in stem and (inside is None or family is None):
            names[stem] = stem
            continue
        if format.target == "comfyui":
            known[stem] = is_known(component, rest, family, unet)
        if component.startswith("text_encoder"):
            names[stem] = _encoder(stem, component, rest, format, family, set(encoders))
            continue
        if component and not _denoises(component):
            raise UnsupportedLayerError(
                f"layer '{stem}'", got=f"a layer of {component}",
                needed=f"one of {', '.join(filter(None, format.spellings))}, or transformer",
            )  # fmt: skip
        names[stem], means = _denoiser(component, rest, format, family)
        if len(means) > 1:
            parts[names[stem]] = tuple((component, module) for module in means)
        if family is not None and format.transformers == "original" and family.swaps(rest, unet):
            swapped.add(stem)
    judged = {stem: verdict for stem, verdict in known.items() if verdict is not None}
    return Spelling(
        names, parts, dict(where), frozenset(swapped), sum(judged.values()) if judged else None,
        tuple(stem for stem, verdict in judged.items() if not verdict),
    )  # fmt: skip


def _denoiser(component: str, module: str, format: Format, family: Original | None) -> tuple[str, tuple[str, ...]]:
    plain = format.spellings[component if component in format.spellings else "unet"]
    place = None if family is None else family.place(module)
    if format.target == "comfyui":
        return denoiser_name(module, family)
    if family is None and component.startswith("transformer") and format.transformers != "original":
        return format.transformers + module.replace(".", "_"), (module,)
    if place is None:
        return plain + module.replace(".", "_"), (module,)
    if format.transformers == "original":
        return plain + place.original.replace(".", "_"), place.parts
    return format.transformers + module.replace(".", "_"), (module,)


def _encoder(
    stem: str, component: str, module: str, format: Format, family: Original | None, encoders: set[str]
) -> str:
    if format.target == "comfyui":
        return encoder_name(component, module, family, encoders)
    if component not in format.spellings:
        raise UnsupportedLayerError(
            f"layer '{stem}'", got=f"a layer of {component}",
            needed=f"one of {', '.join(filter(None, format.spellings))}",
        )  # fmt: skip
    prefix = format.spellings[component]
    if component == "text_encoder" and "text_encoder_2" not in encoders:
        prefix = prefix.replace("te1", "te")
    named = name_in_tools(component, module).removeprefix(f"{component}.") if "." in module else module
    return prefix + named.replace(".", "_")


def _denoises(component: str) -> bool:
    return component in ("", "unet", "prior") or component.startswith("transformer")


def dotted(stems: Iterable[str], modules: Mapping[str, Iterable[str]] | None) -> dict[str, str]:
    """Names in a file -> module names, for PEFT folders, which belong to one model.

    Args:
        stems: layer names in the file.
        modules: component -> modules of the base; None if the base is unknown, which suffices for dotted names.

    Raises:
        UnsupportedLayerError: a name needs the base, or the layers belong to several models.
    """
    stems = list(stems)
    if modules is not None:
        matched = places(stems, modules)
        components = {component for component, _ in matched.values()}
        found = {stem: module for stem, (_, module) in matched.items()}
    else:
        parts = {stem: component_of(stem) for stem in stems}
        flat = [stem for stem, (_, rest) in parts.items() if stem != rest and "." not in stem]
        if flat:
            raise UnsupportedLayerError(
                f"the names of {len(flat)} layers", got=f"{shortened(flat)}, with underscores instead of dots",
                needed="module names of the model", do="Name the base with --base",
            )  # fmt: skip
        components, found = {component for component, _ in parts.values()}, {s: rest for s, (_, rest) in parts.items()}
    if len(components) > 1:
        raise UnsupportedLayerError(
            "one PEFT folder", got=f"layers of {' and '.join(sorted(components))}", needed="layers of one model",
            do="Write a single file instead, for a tool that loads a complete pipeline",
        )  # fmt: skip
    _refuse_duplicates(found)
    return found


def places(stems: Iterable[str], modules: Mapping[str, Iterable[str]]) -> dict[str, tuple[str, str]]:
    """Names in a file -> component and module of a base.

    Args:
        stems: layer names in the file.
        modules: component -> modules of the base.

    Raises:
        UnsupportedLayerError: a name matches no module.
        AdapterFileError: a name matches several modules.

    Example:
        >>> places(["lora_unet_blk_lin"], {"unet": ["blk.lin"]})
        {'lora_unet_blk_lin': ('unet', 'blk.lin')}
    """
    plain = {stem: stem.removeprefix(PEFT) for stem in stems}
    match = match_names(plain.values(), modules)
    if match.unmatched:
        raise UnsupportedLayerError(
            f"{len(match.unmatched)} of {len(plain)} layers of the adapter", got=shortened(match.unmatched),
            needed="modules of the base", do="Name the base that the adapter was trained on",
        )  # fmt: skip
    return {stem: match.matched[name] for stem, name in plain.items()}


def component_of(stem: str) -> tuple[str, str]:
    """The component that the prefix of a name refers to, and the rest of the name; a denoiser is called ``unet``.

    Example:
        >>> component_of("lora_te2_text_model_fc"), component_of("base_model.model.blk.lin")
        (('text_encoder_2', 'text_model_fc'), ('', 'blk.lin'))
    """
    stem = stem.removeprefix(PEFT)
    known = [one for one in prefixes() if one[0]]
    fits = [(prefix, meant) for prefix, meant, _ in known if stem.startswith(prefix)]
    # OneTrainer also writes its prefixes with dots
    fits += [(p[:-1] + ".", meant) for p, meant, flat in known if flat and stem.startswith(p[:-1] + ".")]
    if not fits:
        return "", stem
    prefix, meant = max(fits, key=lambda found: len(found[0]))
    return (meant[0] if meant else ""), stem.removeprefix(prefix)


def _refuse_duplicates(found: Mapping[str, str]) -> None:
    back: dict[str, str] = {}
    for stem, name in found.items():
        if name in back:
            raise UnsupportedLayerError(f"layers '{back[name]}' and '{stem}'", got=f"the same name for both, '{name}'")
        back[name] = stem
