"""The modules of an adapted model without those of its adapters, however many adapters it has."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from orthotune.layers.base import OFTLayer


def beside_adapters(model: nn.Module, *, every_name: bool = False) -> Iterator[tuple[str, nn.Module]]:
    """Names and modules in the order of ``named_modules``, without what adapters hold inside their layers.

    A hundred adapters have a hundred modules in every layer, which the loading of another one need not look at.

    Args:
        model: any module.
        every_name: a module that is registered several times comes with each of its names.

    Example:
        >>> from orthotune import OFTConfig, get_peft_model
        >>> model = get_peft_model(nn.Sequential(nn.Linear(8, 4)), OFTConfig(r=2, target_modules=["0"]))
        >>> [name for name, _ in beside_adapters(model.base_model.model)]
        ['', '0', '0.base_layer']
    """
    seen: set[nn.Module] = set()
    waiting: list[tuple[str, nn.Module]] = [("", model)]
    while waiting:
        name, module = waiting.pop()
        if not every_name:
            if module in seen:
                continue
            seen.add(module)
        yield name, module
        held = OFTLayer.adapter_layer_names if isinstance(module, OFTLayer) else ()
        for own, child in reversed(module._modules.items()):
            if child is not None and own not in held:
                waiting.append((f"{name}.{own}" if name else own, child))
