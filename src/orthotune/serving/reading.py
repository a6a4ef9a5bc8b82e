"""An adapter file as the maps of an engine's layers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from orthotune.errors import ConfigError, OrthotuneError, UnsupportedLayerError
from orthotune.files.json_file import read_json
from orthotune.files.names import shortened
from orthotune.files.run_adapter import adapter_in
from orthotune.formats.adapter_file import CONFIG_NAME
from orthotune.formats.adapter_state import AdapterState
from orthotune.formats.names.modules import ModuleNames
from orthotune.serving.layer_map import LayerMap, layer_map

#: Layer, as adapters name it -> its inputs and outputs before they are cut by rank.
Sizes = Mapping[str, tuple[int, int]]


def is_rotation(path: str | Path) -> bool:
    """Whether there is an adapter at a path that an engine's own LoRA loader is not for.

    Args:
        path: a folder, a run directory or a file. What does not exist is left to the engine, which says so.

    Example:
        >>> is_rotation("no/such/adapter")
        False
    """
    path = Path(path)
    if not path.exists():
        return False
    try:
        folder = adapter_in(path)
        if (folder / CONFIG_NAME).is_file():
            return read_json(folder / CONFIG_NAME).get("peft_type", "LORA") != "LORA"
    except OrthotuneError:
        return True  # the reader says in words what is wrong
    return path.is_file() or (folder / "run.json").is_file()


def maps_of(
    state: AdapterState,
    sizes: Sizes,
    renamed: Callable[[str], str],
    tables: Collection[str] = (),
    is_base: Callable[[str, Tensor], bool] = lambda name, weight: False,
) -> dict[str, LayerMap]:
    """The map of each layer, under the engine's name for it.

    Args:
        state: the file.
        sizes: the layers of the engine's model, under the names that adapters use.
        renamed: from a name in the saved model to that in the engine.
        tables: those of the layers that are embeddings.
        is_base: whether a tensor is the weight that a layer of the engine has; PEFT saves that of an embedding or a
            head with the adapter on it.

    Raises:
        ConfigError: the adapter has layers that the model does not have, or of another size.
        UnsupportedLayerError: it holds more than rotations, magnitudes and biases of linear layers and embeddings.

    Example:
        >>> import torch
        >>> from orthotune.formats.adapter_state import LayerState
        >>> state = AdapterState({"blk.q": LayerState({"": torch.zeros(2, 1)})})
        >>> list(maps_of(state, {"blk.q": (4, 4)}, lambda name: name))
        ['blk.q']
    """
    names = _Names(state, sizes, renamed)
    found = {}
    for layer in (*state.layers, *state.transforms):
        if (name := names.find(layer)) is not None:
            found[name] = layer_map(state.transform(layer), *sizes[name], layer, name in tables)
    names.refuse_unknown()
    more = []
    for key, tensor in state.other.items():
        if key.endswith(".weight"):
            name = names.find(key.removesuffix(".weight").removesuffix(".base_layer"))
            if name is not None and is_base(name, tensor):
                continue
        name = names.find(key.removesuffix(".bias").removesuffix(".base_layer")) if key.endswith(".bias") else None
        if name is None:
            more.append(key)
        else:
            found[name] = replace(found.get(name, LayerMap()), bias=_bias(tensor, sizes[name][1], key))
    if more:
        raise UnsupportedLayerError(
            f"serving {state.source or 'an adapter'} unmerged", got=f"{len(more)} further tensors: {shortened(more)}",
            needed="rotations, magnitudes and biases on the weights of the engine's model",
            do="Merge the adapter and serve the merged model: orthotune merge",
        )  # fmt: skip
    if not found:
        raise ConfigError(f"{state.source or 'the adapter'}", got="no layer")
    return found


class _Names:
    def __init__(self, state: AdapterState, sizes: Sizes, renamed: Callable[[str], str]) -> None:
        self._state, self._sizes, self._renamed = state, sizes, renamed
        self._known: ModuleNames | None = None
        self._unknown: list[str] = []

    def find(self, layer: str) -> str | None:
        plain = layer.removeprefix("base_model.model.")
        if (name := self._renamed(plain)) in self._sizes:
            return name
        if self._known is None:
            self._known = ModuleNames({"": self._sizes})
        places = self._known.find(self._state.prefixes.get(layer, plain).removeprefix("base_model.model."))
        if len(places) == 1:
            return next(iter(places))[1]
        self._unknown.append(layer)
        return None

    def refuse_unknown(self) -> None:
        if self._unknown:
            raise ConfigError(
                f"{self._state.source or 'the adapter'}",
                got=f"{len(self._unknown)} layers that the engine's model does not have or does not adapt: "
                f"{shortened(self._unknown)}",
                needed=f"layers such as {shortened(list(self._sizes))}",
                do="Serve the base that the adapter was trained on, without layers that the engine does not adapt",
            )


def _bias(tensor: Tensor, outputs: int, key: str) -> Tensor:
    if tensor.shape != (outputs,):
        raise ConfigError(f"'{key}'", got=f"shape {list(tensor.shape)}", needed=f"[{outputs}]")
    return tensor.float()
