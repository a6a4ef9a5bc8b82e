"""The modules of a model by name: plain names, adapted layers, and modules that are registered in several places.

Older T5 models register one embedding module as ``shared``, ``encoder.embed_tokens`` and ``decoder.embed_tokens``. PEFT
only uses the first name and only replaces the module there. Present T5 models have three modules with one weight, of
which ``shared`` is never called: a target ``shared`` therefore applies to the other two.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from copy import deepcopy
from typing import Any

from torch import nn

from orthotune.layers.base import OFTLayer
from orthotune.layers.beside_adapters import beside_adapters

_BASE_LAYER = re.compile(r"\.base_layer(?=\.|$)")


def plain_name(key: str) -> str:
    """The name of a module in the model without adapters.

    Example:
        >>> plain_name("blk.mha.base_layer.out_proj")
        'blk.mha.out_proj'
    """
    return _BASE_LAYER.sub("", key)


def is_called(key: str, name: str) -> bool:
    """Whether a name in a list of a config matches the module ``key``: its full name, or the end of its name.

    Example:
        >>> is_called("layers.0.q_proj", "q_proj"), is_called("layers.0.my_q_proj", "q_proj")
        (True, False)
    """
    return key == name or key.endswith(f".{name}")


def meaning(targets: list[str], names: Iterable[str]) -> list[str] | str:
    """A value of ``target_modules`` that matches only ``targets``: PEFT also matches a name against the end of others.

    Example:
        >>> meaning(["lin"], ["lin", "blk.conv"]), meaning(["lin"], ["lin", "blk.lin"])
        (['lin'], 'lin')
    """
    ends = tuple(f".{name}" for name in targets)
    if not any(name.endswith(ends) for name in set(names) - set(targets)):
        return sorted(targets)
    return "|".join(re.escape(name) for name in sorted(targets))


def calls_some(name: str, keys: Iterable[str]) -> bool:
    """Whether a name in a list of a config matches any of the modules ``keys``."""
    return any(is_called(key, name) for key in keys)


def adapted_layers(model: nn.Module, adapter_name: str, *, every_name: bool = False) -> list[tuple[str, OFTLayer]]:
    """The layers of a model that have an adapter, with their names in the adapted model.

    Args:
        model: any module that holds adapted layers.
        adapter_name: the adapter.
        every_name: a layer that is registered several times comes with each of its names.
    """
    return [
        (key, module)
        for key, module in beside_adapters(model, every_name=every_name)
        if isinstance(module, OFTLayer) and adapter_name in module.oft_settings
    ]


def base_of(model: Any) -> Any:
    """The model inside a ``PeftModel``; any other model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


class Places:
    """The names and owners of the modules of a model, as they are when this object is created.

    Args:
        model: its modules.

    Example:
        >>> twice = nn.Linear(2, 2)
        >>> Places(nn.ModuleDict({"a": twice, "b": twice})).names("a")
        ['a', 'b']
    """

    def __init__(self, model: nn.Module) -> None:
        self._names: dict[int, list[str]] = {}
        self._first: dict[str, list[str]] = {}
        self._owners: dict[int, dict[tuple[int, str], tuple[nn.Module, str]]] = {}
        self._modules: list[nn.Module] = []  # references, so that ids are not reused for new modules
        for key, module in beside_adapters(model, every_name=True):
            self._modules.append(module)
            names = self._names.setdefault(id(module), [])
            names.append(key)
            self._first[key] = names
            if len(names) == 1:
                for name, child in module._modules.items():
                    if child is not None:
                        self._owners.setdefault(id(child), {})[id(module), name] = (module, name)

    def names(self, key: str) -> list[str]:
        """All names of the module called ``key``, in the order of the model; ``[key]`` when there is none."""
        return self._first.get(key, [key])

    def join(self, module: nn.Module, others: Sequence[nn.Module]) -> None:
        """Treat the owners of ``others`` as owners of ``module``."""
        for other in others:
            self._owners.setdefault(id(module), {}).update(self._owners.get(id(other), {}))

    def owners(self, module: nn.Module) -> list[tuple[nn.Module, str]]:
        """Every module that holds ``module``, and under which attribute."""
        return list(self._owners.get(id(module), {}).values())


def twins(model: nn.Module) -> tuple[nn.Module, list[tuple[str, nn.Module]]] | None:
    """The input embedding of a model, and the other embeddings that share its weight, by name; None without them."""
    ask: Any = getattr(model, "get_input_embeddings", None)
    try:
        table = ask() if ask else None
    except (NotImplementedError, AttributeError):
        return None
    if not isinstance(table, nn.Embedding):
        return None
    found = [(key, module) for key, module in beside_adapters(model) if module is not table and _alike(module, table)]
    return (table, found) if found else None


def _alike(module: nn.Module, table: nn.Embedding) -> bool:
    base = module.get_base_layer() if isinstance(module, OFTLayer) else module
    if type(base) is not type(table) or base.weight is not table.weight:
        return False
    return all(vars(base).get(name) == vars(table).get(name) for name in ("padding_idx", "max_norm", "embed_scale"))


def part_untied(model: nn.Module) -> None:
    """Copy an embedding that is registered several times, after a merge has untied it from the output.

    A saved model whose config ties no weights must hold the weight of each place, and one weight is written once.
    """
    ask: Any = getattr(model, "get_input_embeddings", None)
    if ask is None or getattr(getattr(model, "config", None), "tie_word_embeddings", True):
        return
    table = ask()
    held = [(owner, name) for owner in model.modules() for name, child in owner._modules.items() if child is table]
    for owner, name in held[1:]:
        setattr(owner, name, deepcopy(table))
