"""The tensors of a checkpoint that make up each parameter of the model."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

#: Supported conversions from tensors to a parameter: (operation, dimension) in order -> whether the result is a stack.
UNDERSTOOD: dict[tuple[tuple[str, int], ...], bool] = {
    (): False,
    (("Concatenate", 0),): False,
    (("MergeModulelist", 0),): True,
    (("MergeModulelist", 0), ("Concatenate", 1)): True,
}


@dataclass
class Origin:
    """The tensors of one parameter: ``copies[i]`` are stacked row by row to matrix ``i``.

    With ``stacked``, the parameter is a stack of these matrices (experts that are stored one by one); otherwise there
    is one copy, and the copy is the parameter. ``by`` names a conversion that is not supported, and is empty otherwise.
    """

    copies: list[list[str]]
    stacked: bool = False
    by: str = ""

    def position(self, name: str) -> tuple[int, int]:
        """The number of the copy that a tensor belongs to, and the tensor's position in the copy."""
        return next((i, names.index(name)) for i, names in enumerate(self.copies) if name in names)


def origins(model: Any, names: Iterable[str]) -> dict[str, Origin]:
    """Parameter name -> its tensors, by the rules with which transformers loads ``model``.

    Args:
        model: a transformers model; its weights are not read.
        names: names of the tensors in the checkpoint.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, rename_source_key

    known = model.state_dict()
    rules = get_model_conversion_mapping(model)
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    renamings = [rule for rule in rules if not isinstance(rule, WeightConverter)]
    groups: dict[str, dict[str, list[str]]] = {}
    for name in names:
        if name in known:  # already the layout of the model: no rule applies
            groups.setdefault(name, {}).setdefault("", []).append(name)
            continue
        parameter, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, known)
        groups.setdefault(parameter, {}).setdefault(pattern or "", []).append(name)
    return {parameter: _origin(found, converters) for parameter, found in groups.items()}


def _origin(found: dict[str, list[str]], converters: list[Any]) -> Origin:
    converter = next((c for c in converters if set(found) <= set(c.source_patterns)), None)
    if converter is None:
        names = [name for group in found.values() for name in group]
        return Origin([names], by="several tensors for one parameter" if len(names) > 1 else "")
    operations = tuple((type(op).__name__, getattr(op, "dim", 0)) for op in converter.operations)
    groups = [sorted(found.get(pattern, []), key=_natural) for pattern in converter.source_patterns]
    fits = all(len(group) == len(groups[0]) for group in groups) and len(converter.target_patterns) == 1
    if operations not in UNDERSTOOD or not fits:
        return Origin(groups, by=" and ".join(name for name, _ in operations) or "an unknown conversion")
    stacked = UNDERSTOOD[operations]
    if not stacked and len(groups[0]) != 1:
        return Origin(groups, by="several tensors for one parameter")
    return Origin([list(copy) for copy in zip(*groups, strict=True)], stacked)


def _natural(name: str) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
