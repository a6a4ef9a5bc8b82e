"""A module that is registered several times: all its names, and all places where it is replaced.

Older T5 holds its table of words as ``shared``, ``encoder.embed_tokens`` and ``decoder.embed_tokens``: one module.
PEFT goes by the first name alone, and replaces the module there alone. Today's holds three modules with one weight, of
which ``shared`` is never called: who targets it means the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from torch import nn

from orthotune.layers.base import OFTLayer
from orthotune.layers.settings import LayerSettings
from orthotune.tuner.config import OFTConfig
from orthotune.tuner.sizes import _lookup, settings_for


class Places:
    """Where the modules of a model are, at one moment.

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
        self._modules: list[nn.Module] = []  # kept alive, so that no other module gets the id of one that is replaced
        for key, module in model.named_modules(remove_duplicate=False):
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
        """Count the places of ``others`` as places of ``module``."""
        for other in others:
            self._owners.setdefault(id(module), {}).update(self._owners.get(id(other), {}))

    def owners(self, module: nn.Module) -> list[tuple[nn.Module, str]]:
        """Every module that holds ``module``, and as what."""
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
    found = [(key, module) for key, module in model.named_modules() if module is not table and _alike(module, table)]
    return (table, found) if found else None


def _alike(module: nn.Module, table: nn.Embedding) -> bool:
    base = module.get_base_layer() if isinstance(module, OFTLayer) else module
    if type(base) is not type(table) or base.weight is not table.weight:
        return False
    return all(vars(base).get(name) == vars(table).get(name) for name in ("padding_idx", "max_norm", "embed_scale"))


def part_untied(model: nn.Module) -> None:
    """Give an embedding in several places a copy for each, once a merge has untied it from the output.

    A saved model that says that nothing is tied must hold the weight of each place, and one weight is written once.
    """
    ask: Any = getattr(model, "get_input_embeddings", None)
    if ask is None or getattr(getattr(model, "config", None), "tie_word_embeddings", True):
        return
    table = ask()
    held = [(owner, name) for owner in model.modules() for name, child in owner._modules.items() if child is table]
    for owner, name in held[1:]:
        setattr(owner, name, deepcopy(table))


def settings_by_names(config: OFTConfig, names: Sequence[str]) -> LayerSettings:
    """What ``config`` asks of a layer with several names: the first of them that the config speaks of counts.

    Args:
        config: patterns and settings by name.
        names: of one module; the first is what messages call it.

    Raises:
        BlockSizeError, ConfigError: see :func:`~orthotune.tuner.sizes.settings_for`.
    """
    spoken = [name for name in names if name in config.layer_settings or name in config.transforms]
    for pattern in (config.rank_pattern, config.block_size_pattern):
        spoken += [name for name in names if _lookup(pattern, name) is not None]
    return settings_for(config, spoken[0] if spoken else names[0])
