"""Translate layer names between the spellings of the tools."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from orthotune.errors import UnsupportedLayerError
from orthotune.files.names import shortened
from orthotune.formats.names.modules import match_names
from orthotune.formats.peft.names import PREFIX as PEFT
from orthotune.formats.registry import prefixes, targets


def spelled(stems: Iterable[str], target: str) -> dict[str, str]:
    """Names in a file -> names in the file of a target that uses underscored names.

    Args:
        stems: layer names in the source file.
        target: id of the format that is written.

    Raises:
        UnsupportedLayerError: the target has no name for a component, or two layers would have the same name.

    Example:
        >>> spelled(["oft_unet_mid_block_conv", "unet.conv_in"], "comfyui")
        {'oft_unet_mid_block_conv': 'lora_unet_mid_block_conv', 'unet.conv_in': 'lora_unet_conv_in'}
    """
    format = targets()[target]
    spelling, found = format.spellings, {}
    parts = {stem: component_of(stem) for stem in stems}
    second = any(component == "text_encoder_2" for component, _ in parts.values())
    for stem, (component, rest) in parts.items():
        if stem.startswith(format.kept) and "." not in stem:
            found[stem] = stem
            continue
        if component not in spelling:
            raise UnsupportedLayerError(
                f"layer '{stem}'", got=f"a layer of {component}", needed=f"one of {', '.join(filter(None, spelling))}"
            )
        prefix = spelling[component]
        if component == "text_encoder" and not second:
            prefix = prefix.replace("te1", "te")
        found[stem] = prefix + rest.replace(".", "_")
    _refuse_duplicates(found)
    return found


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
