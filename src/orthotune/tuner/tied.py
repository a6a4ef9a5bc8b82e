"""Update the configs, the top one and nested ones, whose tied weights a merge has separated."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from peft.utils.other import ModulesToSaveWrapper
from torch import nn

from orthotune.layers.base import OFTLayer

FIELD = "tie_word_embeddings"
_MISSING = object()

#: (parameter, the parameter it is tied to) -> whether the two have separate values
Apart = Callable[[str, str], bool]
#: keys that lead from the top of a config to a nested one
Place = tuple[str, ...]


@dataclass
class Untied:
    """The changes of configs that separated weights need; empty if the configs are right already.

    Attributes:
        configs: config objects with their path below the model's config; copies that modules hold have no path.
        pairs: all pairs that the field would tie, including those that still share their values.
        fields: further fields to write, whose meaning the top field included.
    """

    configs: list[tuple[Place | None, Any]] = field(default_factory=list)
    pairs: list[tuple[str, str]] = field(default_factory=list)
    fields: dict[str, Any] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.configs)

    def set(self) -> list[tuple[Any, Any]]:
        """Change the live configs; returns them with their values before, for :func:`put_back`."""
        before = [(config, getattr(config, FIELD, _MISSING)) for _, config in self.configs]
        for config, _ in before:
            setattr(config, FIELD, False)
        return before

    def write(self, config: dict[str, Any]) -> None:
        """Change ``config``, the content of a config.json."""
        for place, live in self.configs:
            inner = config
            for key in place or ():
                kind = {"model_type": live.model_type} if getattr(live, "model_type", "") else {}
                inner = inner.setdefault(key, dict(kind))
            if place is not None:
                inner[FIELD] = False
        if self:
            config |= self.fields


def put_back(before: list[tuple[Any, Any]]) -> None:
    """Give configs the values that :meth:`Untied.set` found."""
    for config, value in reversed(before):
        if value is _MISSING:
            delattr(config, FIELD)
        else:
            setattr(config, FIELD, value)


def untied(model: nn.Module, apart: Apart) -> Untied:
    """The configs of a transformers model that tie weights which are separate.

    Args:
        model: the model.
        apart: whether two of its parameters have separate values.

    These are the configs of every module on the way from the model to either weight, and the nested ones that such a
    module was made from. A model whose forward scales its output where the field is True keeps it, with a warning.
    """
    names = _tied_by_config(model)
    split = [(name, source) for name, source in names.items() if apart(name, source)]
    config = getattr(model, "config", None)
    if not split or not hasattr(config, "to_dict"):
        return Untied()
    on_the_way = {owner for pair in split for name in pair for owner in _owners(model, name)}
    if any(_reads_field(owner) for owner in on_the_way):
        warnings.warn(
            f"{type(model).__name__} scales its output where {FIELD} is True, so its config stays as it is although "
            "the merge separated weights. transformers compares the weights when it loads them; a reader that uses "
            "the config only ties them again.",
            stacklevel=2,
        )
        return Untied()
    together = [pair for pair in names.items() if pair not in split]
    holding = [owner.config for owner in on_the_way]
    others = [module.config for module in model.modules() if _has_config(module) and module not in on_the_way]
    found: list[tuple[Place | None, Any]] = []
    for place, nested in _nested(config):
        ties = bool(getattr(nested, FIELD, False))
        if not place or (ties and (_among(nested, holding) or not (together and _among(nested, others)))):
            found.append((place, nested))
    known = {id(nested) for _, nested in found}
    found += [(None, one) for one in {id(c): c for c in holding}.values()
              if id(one) not in known and getattr(one, FIELD, False)]  # fmt: skip
    if not any(getattr(one, FIELD, False) for _, one in found):
        return Untied()  # every config is right already
    # T5's older readers take the field for it.
    scale = {"scale_decoder_outputs": value} if (value := getattr(config, "scale_decoder_outputs", None)) else {}
    return Untied(found, list(names.items()), scale)


def roots(model: nn.Module) -> Iterator[nn.Module]:
    """The outermost models of transformers in ``model``."""
    inside: set[int] = set()
    for module in model.modules():
        if id(module) not in inside and hasattr(module, "all_tied_weights_keys"):
            inside |= {id(inner) for inner in module.modules()}
            yield module


def apart_in(model: nn.Module) -> Apart:
    """A function that tells whether two parameters of ``model`` are separate; on the meta device they count as one."""

    def apart(name: str, source: str) -> bool:
        one, other = (_parameter(model, key) for key in (name, source))
        if one is None or other is None or "meta" in (one.device.type, other.device.type):
            return False
        return one is not other and one.data_ptr() != other.data_ptr()

    return apart


def separate_values(model: nn.Module, pairs: list[tuple[str, str]]) -> None:
    """Copy each parameter of ``pairs`` that shares its values: without ties, a reader needs all of them."""
    seen: set[int] = set()
    for name in dict.fromkeys([source for _, source in pairs] + [name for name, _ in pairs]):
        parameter = _parameter(model, name)
        if parameter is None or parameter.device.type == "meta":
            continue
        if parameter.data_ptr() in seen:
            owner, _, leaf = name.rpartition(".")
            parameter = nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)
            setattr(model.get_submodule(owner), leaf, parameter)
        seen.add(parameter.data_ptr())


def _tied_by_config(model: Any) -> dict[str, str]:
    """What the config ties, also where the file that was loaded held two weights and they were left apart."""
    names = dict(getattr(model, "all_tied_weights_keys", None) or {})
    try:
        return {**model.get_expanded_tied_weights_keys(all_submodels=True), **names}
    except (AttributeError, ValueError):  # patterns that fit no parameter of an adapted model
        return names


def _parameter(model: nn.Module, name: str) -> Any:
    """The parameter that acts under the name it has in the plain model."""
    module: Any = model
    for part in name.split("."):
        module = _inside(getattr(module, part, None))
    return module if isinstance(module, nn.Parameter) else None


def _inside(module: Any) -> Any:
    if isinstance(module, OFTLayer):
        return module.get_base_layer()
    if isinstance(module, ModulesToSaveWrapper):
        active = [name for name in module.active_adapters if name in module.modules_to_save]
        off = module.disable_adapters or not active
        return _inside(module.original_module if off else module.modules_to_save[active[0]])
    return module


def _has_config(module: nn.Module) -> bool:
    return hasattr(getattr(module, "config", None), "to_dict")


def _owners(model: nn.Module, name: str) -> list[nn.Module]:
    owners: list[nn.Module] = [model]
    module: Any = model
    for part in name.split(".")[:-1]:
        module = _inside(getattr(module, part, None))
        if isinstance(module, nn.Module) and _has_config(module):
            owners.append(module)
    return owners


def _nested(config: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    yield place, config
    for key, value in vars(config).items():
        if hasattr(value, "to_dict") and hasattr(value, "model_type"):
            yield from _nested(value, (*place, key))


def _among(config: Any, others: list[Any]) -> bool:
    """Whether a module was made from the config: models copy the nested configs that they pass on."""
    return any(one is config or (type(one) is type(config) and _plain(one) == _plain(config)) for one in others)


def _plain(config: Any) -> dict[str, Any]:
    return {key: value for key, value in config.to_dict().items() if key != FIELD}


def _reads_field(module: nn.Module) -> bool:
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return code is not None and FIELD in code.co_names
