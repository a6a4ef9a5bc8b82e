"""Asked of an adapter before a model is touched: a plain name, patterns that end, sizes that its file bears out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from orthotune.errors import AdapterFileError, ConfigError
from orthotune.layers.base import OFTLayer
from orthotune.tuner.adapter_keys import refuse_name
from orthotune.tuner.patterns import refuse_endless

#: A config may be off, and then the shapes are told in detail; or be used again, for a larger model. It may not ask for
#: a multiple of what its file holds that is also a good part of the layers themselves.
SLACK, ALWAYS, SHARE = 4, 1 << 20, 8


def admit_adapter(config: Any, adapter_name: str, model: nn.Module) -> None:
    """Check an adapter's name, which becomes the name of a folder when it is saved, and its config's patterns.

    Raises:
        ConfigError: the name is none of a folder or of torch's containers, or one that PEFT takes for a module to save;
        or a pattern does not end.
    """
    refuse_name(adapter_name)
    names = {name for layer in model.modules() if isinstance(layer, OFTLayer) for name in layer.oft_settings}
    for saved in getattr(config, "modules_to_save", None) or []:
        if clash := sorted(name for name in {*names, adapter_name} if name.endswith(saved)):
            raise ConfigError(
                f"modules_to_save={saved!r} with an adapter called {clash[0]!r}",
                got="the end of the adapter's name, by which PEFT takes its rotations for a module to save",
                do="Give the adapter another name",
            )
    keys = [key for key, _ in model.named_modules(remove_duplicate=False)]
    if getattr(config, "target_parameters", None):
        keys += [key for key, _ in model.named_parameters()]
    refuse_endless(config, keys)


def refuse_oversized(config: Any, tried: Iterable[OFTLayer]) -> None:
    """Refuse a config from a file that asks for far more memory than the file has numbers.

    Args:
        config: an ``OFTConfig``; its ``stored_numbers`` are those of its file, None for a config of one's own.
        tried: the layers that it makes, without memory.

    Raises:
        AdapterFileError: before anything is allocated.
    """
    if config.stored_numbers is None:
        return
    layers = list(tried)
    wanted = sum(rotation.weight.numel() for layer in layers for rotation in layer.rotations("check").values())
    bases = sum(parameter.numel() for layer in layers for parameter in layer.get_base_layer().parameters())
    if wanted > max(SLACK * config.stored_numbers + ALWAYS, bases // SHARE):
        raise AdapterFileError(
            "the adapter's config",
            got=f"rotations of {wanted:,} numbers for this model, and {config.stored_numbers:,} in the file",
            needed="r, oft_block_size and target_modules as the adapter was trained with",
            do="Get adapter_config.json and the weights from the same place",
        )
