"""Find the module of a model that a layer name in a file refers to, for files of all tools.

Underscored names are never split. Instead, the module names of the model are underscored and looked up; two modules
with the same underscored name are an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from orthotune.errors import AdapterFileError
from orthotune.files.names import shortened
from orthotune.formats.names.ldm import diffusers_names, ldm_names
from orthotune.formats.names.original import original_of
from orthotune.formats.registry import prefixes

#: A component of a pipeline and a module in it; the component is "" when the model is one module.
Place = tuple[str, str]

#: the adapters of diffusers' attention processors, below the attention
_PROCESSOR = re.compile(r"^(?P<attention>.*)\.processor\.to_(?P<name>q|k|v|out)_(?:oft|lora)$")
#: OpenCLIP (the second text encoder of SDXL in LDM files) -> CLIP of transformers
_OPENCLIP = {"attn.out_proj": "self_attn.out_proj", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
_CLIP_LAYER = re.compile(r"(?:text_model\.)?encoder\.layers\.(\d+)\.(.+)")


@dataclass(frozen=True)
class Match:
    """Names in the file -> modules of the model, and the names that match no module."""

    matched: dict[str, Place]
    unmatched: list[str] = field(default_factory=list)


class ModuleNames:
    """The modules of a model, or of the components of a pipeline, with all names that files use for them.

    Args:
        components: component -> names of its modules that can carry an adapter; ``{"": names}`` for one model.

    Example:
        >>> ModuleNames({"": ["down_blocks.0.resnets.0.conv1"]}).find("lora_unet_input_blocks_1_0_in_layers_2")
        {('', 'down_blocks.0.resnets.0.conv1')}
    """

    def __init__(self, components: Mapping[str, Iterable[str]]) -> None:
        self._prefixes = prefixes()
        self._dotted: dict[str, dict[str, set[str]]] = {}
        self._underscored: dict[str, dict[str, set[str]]] = {}
        self._fused: dict[str, dict[str, tuple[str, ...]]] = {}
        for component, names in components.items():
            names = list(names)
            dotted = self._dotted[component] = _aliases(names)
            underscored = self._underscored[component] = {}
            for name, modules in dotted.items():
                underscored.setdefault(name.replace(".", "_"), set()).update(modules)
            self._fused[component] = _fused(names)

    def find(self, name: str) -> set[Place]:
        """All modules that the name may refer to; an exact module name refers to that module only."""
        if found := _PROCESSOR.match(name):
            name = f"{found['attention']}.to_{'out.0' if found['name'] == 'out' else found['name']}"
        exact = {(component, name) for component, known in self._dotted.items() if name in known.get(name, ())}
        if exact:
            return exact
        return {
            (component, module)
            for component, rest, flat in self._rests(name)
            for module in (self._underscored if flat else self._dotted)[component].get(rest, ())
        }

    def parts(self, name: str) -> tuple[Place, ...]:
        """The modules that hold the rows of an original layer, in order; empty if the name means no such layer.

        Example:
            >>> qkv = [f"single_transformer_blocks.0.attn.to_{letter}" for letter in "qkv"]
            >>> known = [*qkv, "single_transformer_blocks.0.proj_mlp", "distilled_guidance_layer.in_proj"]
            >>> ModuleNames({"": known}).parts("lora_unet_single_blocks_0_linear1")[2]
            ('', 'single_transformer_blocks.0.attn.to_v')
        """
        for component, rest, flat in self._rests(name):
            for original, parts in self._fused[component].items():
                if rest == (original.replace(".", "_") if flat else original):
                    return tuple((component, part) for part in parts)
        return ()

    def _rests(self, name: str) -> Iterator[tuple[str, str, bool]]:
        """The components that a prefix of the name can mean, the rest of the name, and whether it has underscores."""
        for prefix, meant, underscored in self._prefixes:
            if not name.startswith(prefix[:-1]) or not (name.startswith(prefix) or underscored):
                continue
            # files of OneTrainer keep the dots after a prefix that other tools use with underscores
            flat = underscored and name.startswith(prefix)
            rest = name[len(prefix) :]
            if underscored and not flat and name[len(prefix) - 1 : len(prefix)] != ".":
                continue
            for component in self._dotted:
                if not component or not meant or component in meant:
                    yield component, rest, flat


def match_names(names: Iterable[str], components: Mapping[str, Iterable[str]]) -> Match:
    """Match the layer names of a file with modules.

    Args:
        names: as in the file, including the prefix.
        components: as for :class:`ModuleNames`.

    Raises:
        AdapterFileError: a name matches several modules, or two names match the same module.

    Example:
        >>> match_names(["lycoris_blk_lin", "lycoris_gone"], {"": ["blk.lin"]})
        Match(matched={'lycoris_blk_lin': ('', 'blk.lin')}, unmatched=['lycoris_gone'])
    """
    modules = ModuleNames(components)
    found = {name: modules.find(name) for name in names}
    for name, places in found.items():
        if len(places) > 1:
            raise AdapterFileError(
                f"layer '{ascii(name)[1:-1]}' of the adapter",
                got=f"{len(places)} modules that match: {shortened(sorted(map(_dotted_path, places)))}",
                needed="one",
                do="Load it on the component that it was trained on, as {'text_encoder': model}",
            )
    matched = {name: next(iter(places)) for name, places in found.items() if places}
    back: dict[Place, str] = {}
    for name, place in matched.items():
        if place in back:
            raise AdapterFileError(
                f"layers '{ascii(back[place])[1:-1]}' and '{ascii(name)[1:-1]}' of the adapter",
                got=f"the same module for both, '{_dotted_path(place)}'",
                needed="a module for each",
                do="Pass the complete pipeline, or name the component, as {'text_encoder_2': model}",
            )
        back[place] = name
    return Match(matched, [name for name, places in found.items() if not places])


def name_in_tools(component: str, module: str) -> str:
    """The name that image tools underscore: for CLIP text encoders, the name in transformers before version 5.

    Args:
        component: of the pipeline; "" for a single denoiser.
        module: name of the module in the component.

    Example:
        >>> name_in_tools("text_encoder_2", "transformer.resblocks.1.mlp.c_fc")
        'text_encoder_2.text_model.encoder.layers.1.mlp.fc1'
    """
    if component.startswith("text_encoder"):
        open_clip = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)", module)
        if open_clip and open_clip[2] in _OPENCLIP:
            module = f"encoder.layers.{open_clip[1]}.{_OPENCLIP[open_clip[2]]}"
        if _CLIP_LAYER.fullmatch(module) and not module.startswith("text_model."):
            module = f"text_model.{module}"
    return f"{component or 'unet'}.{module}"


def _dotted_path(place: Place) -> str:
    return ".".join(part for part in place if part)


def _aliases(names: list[str]) -> dict[str, set[str]]:
    """Dotted name that a file may use -> the modules that it refers to."""
    known: dict[str, set[str]] = {name: {name} for name in names}
    other = [*ldm_names(names).items(), *diffusers_names(names).items()]
    if (family := original_of(names)) is not None:
        other += [(name, alias) for name in names for alias in family.names_of(name) if alias != name]
    for name in names:
        # transformers 5 removed the level text_model, which all files have and some classes keep
        stem = name.removeprefix("text_model.")
        other.append((name, stem if stem != name else f"text_model.{name}"))
        if found := _CLIP_LAYER.fullmatch(name):
            for there, here in _OPENCLIP.items():
                if found[2] == here:
                    other.append((name, f"transformer.resblocks.{found[1]}.{there}"))
    for name, alias in other:
        known.setdefault(alias, set()).add(name)
    return known


def _fused(names: list[str]) -> dict[str, tuple[str, ...]]:
    """Original layer -> the modules that hold its rows, where these are several."""
    family, found = original_of(names), dict[str, tuple[str, ...]]()
    known = set(names)
    for name in names if family is not None else ():
        for original, parts in family.wholes_of(name) if family is not None else ():
            if known.issuperset(parts):
                found[original] = parts
    return found
