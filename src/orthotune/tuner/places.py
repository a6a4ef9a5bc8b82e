"""A module that is registered several times: all its names, and all places where it is replaced.

T5 holds its table of words as ``shared``, ``encoder.embed_tokens`` and ``decoder.embed_tokens``: one module. PEFT goes
by the first name alone, and replaces the module there alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

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
        self._modules: list[nn.Module] = []  # a module that is replaced meanwhile must not give its number to another one
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

    def owners(self, module: nn.Module) -> list[tuple[nn.Module, str]]:
        """Every module that holds ``module``, and as what."""
        return list(self._owners.get(id(module), {}).values())


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
