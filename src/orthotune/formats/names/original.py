"""Names of the layers of a transformer in the program that first released it, beside those of diffusers."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property


@dataclass(frozen=True)
class Place:
    """Where the rows of a diffusers layer are in an original layer.

    Attributes:
        original: dotted name of the original layer.
        parts: all diffusers layers of which it consists, from the first row on.
    """

    original: str
    parts: tuple[str, ...]


@dataclass(frozen=True)
class Original:
    """The table of one family.

    Attributes:
        family: id of the family.
        marks: diffusers layers that together only this family has.
        modules: original layer -> diffusers layers that hold its rows, in order; ``{}`` is the number of a block. If
            two lines hold the same diffusers layers, the first one is written and both are read.
        same: starts of names that are the same in both.
        swapped: diffusers layers whose two halves of rows have changed places.
        swapped_in_last: the same, in the last block only.
    """

    family: str
    marks: tuple[str, ...]
    modules: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    same: tuple[str, ...] = ()
    swapped: tuple[str, ...] = ()
    swapped_in_last: tuple[str, ...] = ()

    def of(self, modules: Collection[str]) -> bool:
        """Whether these are the modules of a model of the family."""
        return all(mark in modules for mark in self.marks)

    def place(self, module: str) -> Place | None:
        """The place of a diffusers layer; None if the table does not have it.

        Example:
            >>> from orthotune.formats.names.original_tables import FLUX
            >>> FLUX.place("transformer_blocks.3.attn.to_k").original
            'double_blocks.3.img_attn.qkv'
        """
        if module.startswith(tuple(self._same_starts(module))):
            return Place(module, (module,))
        number, template = _template(module, self._here)
        if template is None:
            return None
        original = self._here[template]
        return Place(original.format(number), tuple(part.format(number) for part in self.modules[original]))

    def parts(self, name: str) -> tuple[str, ...]:
        """The diffusers layers of an original layer, in the order of its rows; empty if the table does not have it."""
        number, template = _template(name, self.modules)
        return () if template is None else tuple(part.format(number) for part in self.modules[template])

    def names_of(self, module: str) -> list[str]:
        """All original names of a diffusers layer that is not one of several parts."""
        number, _ = _template(module, self._here)
        lines = [name for name, parts in self.modules.items() if parts == (_with_hole(module, number),)]
        return [name.format(number) for name in lines]

    def wholes_of(self, module: str) -> list[tuple[str, tuple[str, ...]]]:
        """The original layers that consist of several diffusers layers, this one among them, with all of these."""
        number, _ = _template(module, self._here)
        hole = _with_hole(module, number)
        found = [(name, parts) for name, parts in self.modules.items() if len(parts) > 1 and hole in parts]
        return [(name.format(number), tuple(part.format(number) for part in parts)) for name, parts in found]

    def swaps(self, module: str, modules: Iterable[str]) -> bool:
        """Whether the halves of the rows have changed places in this layer of a model with these modules."""
        if module in self.swapped:
            return True
        hole, number = next(((t, n) for t in self.swapped_in_last if (n := _number(t, module)) is not None), ("", None))
        return number is not None and int(number) == max(int(n) for m in modules if (n := _number(hole, m)) is not None)

    @cached_property
    def _here(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for original, parts in self.modules.items():
            for part in parts:
                found.setdefault(part, original)
        return found

    def _same_starts(self, module: str) -> list[str]:
        number = re.search(r"\.(\d+)\.", module)
        return [start.format(number[1]) for start in self.same if number] or ["\0"]


def blocks(there: str, here: str, inside: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """The lines of a table for one kind of block.

    Args:
        there: original name of the block; empty for layers outside of blocks.
        here: name of the block in diffusers.
        inside: original layer in the block -> diffusers layers in the block, with spaces between them.

    Example:
        >>> blocks("double_blocks.{}", "transformer_blocks.{}", {"kv": "to_k to_v"})
        {'double_blocks.{}.kv': ('transformer_blocks.{}.to_k', 'transformer_blocks.{}.to_v')}
    """
    one, other = (f"{start}." if start else "" for start in (there, here))
    return {f"{one}{name}": tuple(f"{other}{part}" for part in parts.split()) for name, parts in inside.items()}


def original_of(modules: Collection[str]) -> Original | None:
    """The table of the model with these modules; None if no family has them.

    Args:
        modules: names of the layers of a model, as in diffusers.

    Example:
        >>> original_of(["condition_embedder.text_embedder.linear_1", "blocks.0.attn1.to_q"]).family
        'wan'
    """
    from orthotune.formats.names.original_tables import ORIGINALS  # the tables are made of the classes of this file

    known = set(modules)
    return next((one for one in ORIGINALS if one.of(known)), None)


def candidates(layers: Collection[str]) -> list[Original]:
    """The tables that have all these diffusers layers, for an adapter whose base is not known.

    Args:
        layers: dotted names in diffusers.

    Example:
        >>> [one.family for one in candidates(["joint_transformer_blocks.0.attn.to_q"])]
        ['auraflow']
    """
    from orthotune.formats.names.original_tables import ORIGINALS

    return [one for one in ORIGINALS if layers and all(one.place(layer) is not None for layer in layers)]


_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def _template(name: str, known: Collection[str] | Mapping[str, object]) -> tuple[str, str | None]:
    """The number of the block and the line of a table for a name; an empty number for layers outside of blocks."""
    if name in known:
        return "", name
    number = _NUMBER.search(name)
    if number is None:
        return "", None
    template = _with_hole(name, number[0])
    return number[0], template if template in known else None


def _with_hole(name: str, number: str) -> str:
    return re.sub(rf"(?<=\.){number}(?=\.)", "{}", name, count=1) if number else name


def _number(template: str, name: str) -> str | None:
    found = re.fullmatch(re.escape(template).replace(r"\{\}", r"(\d+)"), name) if template else None
    return found[1] if found else None
