"""The tensors of an adapter: their keys in a model's state, their names in a file, and checks of a file.

The key ``lin.oft_R.style.weight`` of the model is ``lin.oft_R.weight`` in a file. Keys are found through the adapted
layers, not by patterns: adapters can have the names of modules, and modules the names of adapter containers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import torch
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from orthotune.errors import AdapterFileError
from orthotune.files.names import shortened
from orthotune.layers.base import OFTLayer
from orthotune.layers.beside_adapters import beside_adapters
from orthotune.layers.parametrization.magnitude import Magnitude
from orthotune.layers.parametrization.sharding import is_zero
from orthotune.tuner.old_files import PREFIX, is_old_key, rename_keys
from orthotune.tuner.places import adapted_layers

#: matches a key that belongs to a rotation of some other model
ROTATION = re.compile(r"(^|\.)(oft_R|oft_embedding_R|oft_magnitude)(\.|$)")
FSDP = "_fsdp_wrapped_module."


class AdapterKey(str):
    """A key of the model's state that knows its name in a file."""

    stored: str

    def __new__(cls, key: str, stored: str) -> AdapterKey:
        """``key`` in the model, ``stored`` in a file."""
        made = super().__new__(cls, key)
        made.stored = stored
        return made


def adapter_keys(model: nn.Module, adapter_name: str, every_name: bool = False) -> Iterator[tuple[AdapterKey, Tensor]]:
    """The keys of an adapter's rotations, magnitudes and frozen bases in a model, with their tensors.

    Args:
        model: any module that holds adapted layers.
        adapter_name: name of the adapter.
        every_name: also yield the further names of a layer that is registered several times.
    """
    inside = tuple(f"{key}." for key, module in _modules(model) if isinstance(module, AuxiliaryTrainingWrapper))
    for key, layer in _modules(model, remove_duplicate=not every_name):
        if not isinstance(layer, OFTLayer) or key.startswith(inside):
            continue
        stem = f"{key}." if key else ""
        for container in layer.adapter_layer_names:
            held = getattr(layer, container)
            if adapter_name not in held:
                continue
            entry = held[adapter_name]
            for part, parameter in (*entry.named_parameters(), *entry.named_buffers()):
                key_of_part = f"{stem}{container}.{adapter_name}.{part}"
                in_file = f"{stem}{container}" + ("" if isinstance(entry, Magnitude) else f".{part}")
                yield AdapterKey(key_of_part, in_file), parameter


def own_state(
    model: nn.Module, adapter_name: str, state: dict[str, Tensor], others: Sequence[str]
) -> dict[str, Tensor]:
    """The tensors of an adapter from the state of a model, under keys that carry their names in a file.

    PEFT removes every key from ``state`` that contains the name of another adapter, even where it is the name of a
    module. Removed keys of this adapter or of the base are put back, also into ``state``.

    Args:
        model: the model.
        adapter_name: name of the adapter.
        state: the model's state, or a ``state_dict`` argument of the user.
        others: the model's other adapters.

    Raises:
        AdapterFileError: a key is missing in the ``state_dict`` argument.
    """
    keys: dict[str, Tensor] = dict(adapter_keys(model, adapter_name))
    _put_back(model, adapter_name, state, others, keys)
    if missing := [key for key in keys if key not in state]:
        raise AdapterFileError(
            f"saving adapter '{adapter_name}' from the given state_dict",
            got=f"no key {missing[0]!r} in it" + (f", and {len(missing) - 1} more" if len(missing) > 1 else ""),
            needed="the full state of the model, and adapters whose names are not names of its modules",
            do="Omit state_dict, or give the adapters other names",
        )
    return {key: state[key] for key in keys}


def _put_back(
    model: nn.Module, adapter_name: str, state: dict[str, Tensor], others: Sequence[str], keys: Mapping[str, Tensor]
) -> None:
    foreign = {key for other in others for key, _ in adapter_keys(model, other, every_name=True)}
    wrappers = [(key, module) for key, module in _modules(model) if isinstance(module, AuxiliaryTrainingWrapper)]
    foreign_parts = tuple(f"{key}.modules_to_save.{other}." for key, _ in wrappers for other in others)
    own_parts = tuple(f"{key}.modules_to_save.{adapter_name}." for key, _ in wrappers)
    found = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    found = {key.removeprefix(FSDP): tensor for key, tensor in found.items()}
    lost = {
        key: tensor
        for key, tensor in found.items()
        if key not in state and any(f".{other}." in key or key.endswith(f".{other}") for other in others)
        if key not in foreign and not key.startswith(foreign_parts)
    }
    if not lost:
        return
    needed = [key for key in lost if key in keys or key.startswith(own_parts)]
    if all(_is(state[key], tensor) for key, tensor in found.items() if key in state) and not any(
        is_zero(tensor) for tensor in lost.values()
    ):
        state.update({key: tensor.detach() for key, tensor in lost.items()})
    elif needed:
        raise AdapterFileError(
            f"saving adapter '{adapter_name}' from the given state_dict",
            got=f"another adapter whose name is part of the key {needed[0]!r}, which PEFT therefore removes",
            needed="adapters whose names are not names of the model's modules",
            do="Omit state_dict, or give the adapters other names",
        )


def _is(one: Tensor, other: Tensor) -> bool:
    return one.device == other.device and (one.device.type == "meta" or one.data_ptr() == other.data_ptr())


def placed(model: nn.Module, adapter_name: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A file's tensors under the keys of the model; tensors that belong to no rotation keep their key.

    Raises:
        AdapterFileError: the file holds different values for one layer that has several names.
    """
    keys: dict[str, AdapterKey] = {}
    first: dict[int, AdapterKey] = {}
    for one, parameter in adapter_keys(model, adapter_name, every_name=True):
        keys[one.stored] = first.setdefault(id(parameter), one)
        if not one.startswith(PREFIX):
            keys[PREFIX + one.stored] = keys[one.stored]
    foreign = [key for key in state if key not in keys]
    new = rename_keys(model, adapter_name, foreign) if foreign else {}
    found: dict[str, Tensor] = {}
    for written, tensor in state.items():
        key = new.get(written, written)
        own = keys.get(key)
        if own is not None and str(own) in found and not _equal(found[own], tensor):
            raise AdapterFileError(
                f"tensor {key!r} of the adapter",
                got=f"other values than under {own.stored!r}, which is the same layer in this model",
                needed="the same values under all names of a layer",
                do="Load the adapter on the base model that it was trained on",
            )
        found[key if own is None else str(own)] = tensor
    return found


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and (one.device.type == "meta" or torch.equal(one, other.to(one.device)))


def _modules(model: nn.Module, remove_duplicate: bool = True) -> Iterator[tuple[str, nn.Module]]:
    # The state of a model in FSDP has names without FSDP's wrapper.
    for key, module in beside_adapters(model, every_name=not remove_duplicate):
        yield key.removeprefix(FSDP), module


def check_state(model: nn.Module, adapter_name: str, state: dict[str, Tensor]) -> None:
    """Check that the tensors of a file fit this model and are finite, before they are loaded.

    ``state`` has the keys of the model. Tensors of ``modules_to_save`` and biases are not checked here.

    Raises:
        AdapterFileError: an old layout, layers that are missing in the model or in the file, other shapes, or values
        that
            are not finite.
    """
    # Keys of the model are excluded first: a module may have the name of a container of rotations.
    known = {k.removeprefix(PREFIX) for k, _ in model.named_parameters(remove_duplicate=False)}
    known |= {k.removeprefix(PREFIX) for k, _ in model.named_buffers(remove_duplicate=False)}
    found = {k.removeprefix(PREFIX): k for k in state}
    foreign = [k for k in found if k not in known]
    old = [k for k in foreign if is_old_key(k)]
    if old:
        raise AdapterFileError(
            "the adapter",
            got=f"tensors of PEFT before 0.16 (key {old[0]!r}) under the config of a later version",
            needed="keys that end in oft_R.weight, or the adapter_config.json that was saved with the tensors",
        )
    expected = {k.removeprefix(PREFIX): p for k, p in adapter_keys(model, adapter_name)}
    strange = [k for k in foreign if ROTATION.search(k)]
    missing = [k for k in expected if k not in found]
    if strange or missing:
        raise AdapterFileError(
            "the adapter for this model",
            got="; ".join(
                f"{len(names)} rotations that {who} does not have, the first {names[0]!r}"
                for names, who in ((strange, "the model"), (missing, "the file"))
                if names
            ),
            needed="the base model that the adapter was trained on, or one with the same layers",
            do="Check base_model_name_or_path in adapter_config.json",
        )
    shapes = [(k, tuple(state[found[k]].shape), tuple(p.shape)) for k, p in expected.items()]
    wrong = [(k, a, b) for k, a, b in shapes if a != b]
    if wrong:
        name, file_shape, model_shape = wrong[0]
        raise AdapterFileError(
            f"the adapter for this model: {len(wrong)} of {len(shapes)} rotations have another shape",
            got=f"{file_shape} in the file for {name!r}",
            needed=f"{model_shape} for this base model",
            do="Load the adapter on the base model that it was trained on",
        )
    for key in expected:
        if state[found[key]].device.type != "meta" and not torch.isfinite(state[found[key]]).all():
            raise AdapterFileError(
                f"tensor {key!r} of the adapter",
                got="NaN or infinite values",
                do="Use an earlier checkpoint: this one was saved after the training diverged",
            )


def refuse_frozen(model: nn.Module, adapter_name: str) -> None:
    """Refuse to save an adapter with frozen maps, which would be missing in the file.

    Raises:
        AdapterFileError: names the layers.
    """
    frozen = [
        layer.oft_settings[adapter_name].layer
        for _, layer in adapted_layers(model, adapter_name)
        if layer.frozen_map(adapter_name) is not None
    ]
    if frozen:
        raise AdapterFileError(
            f"saving adapter '{adapter_name}'",
            got=f"{len(frozen)} frozen layers, which the file format cannot hold: {shortened(frozen)}",
            do="Keep the file that the adapter was loaded from, or merge the adapter and save the model",
        )
