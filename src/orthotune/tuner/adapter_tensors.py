"""The tensors of an adapter: which keys of a model's state they have, their names in a file, and whether a file fits.

Keys are found by the adapted layers, never by what a key looks like: a key ``lin.oft_R.style.weight`` of the model is
``lin.oft_R.weight`` in a file, adapters may be called as modules are, and modules as the containers of adapters are, so
no pattern can distinguish one from the other.
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
from orthotune.layers.parametrization.sharding import is_zero
from orthotune.tuner.old_files import PREFIX, is_old_key, rename_keys
from orthotune.tuner.places import adapted_layers

#: what a key looks like that the model does not have, and that some model has for a rotation
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
    """The keys of an adapter's rotations and magnitudes in a model, with their parameters.

    Args:
        model: any module that holds adapted layers.
        adapter_name: whose.
        every_name: also the further names of a layer that is registered several times.
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
            if isinstance(entry, nn.Parameter):
                yield AdapterKey(f"{stem}{container}.{adapter_name}", f"{stem}{container}"), entry
                continue
            for part, parameter in entry.named_parameters():
                key_of_part = f"{stem}{container}.{adapter_name}.{part}"
                yield AdapterKey(key_of_part, f"{stem}{container}.{part}"), parameter


def own_state(
    model: nn.Module, adapter_name: str, state: dict[str, Tensor], others: Sequence[str]
) -> dict[str, Tensor]:
    """The tensors of an adapter from the state of a model, under keys that know their names in a file.

    PEFT's host has left out of ``state`` every key with the name of another adapter in it, whatever it means there.
    What belongs to this adapter or to the base is put back, into ``state`` too.

    Args:
        model: the model.
        adapter_name: whose tensors.
        state: the model's state, or one that a user gave.
        others: the model's other adapters.

    Raises:
        AdapterFileError: a key is missing in a state that a user gave.
    """
    keys: dict[str, Tensor] = dict(adapter_keys(model, adapter_name))
    _put_back(model, adapter_name, state, others, keys)
    if missing := [key for key in keys if key not in state]:
        raise AdapterFileError(
            f"saving adapter '{adapter_name}' from a state_dict of your own",
            got=f"no key {missing[0]!r} in it" + (f", and {len(missing) - 1} more" if len(missing) > 1 else ""),
            needed="the full state of the model, and other adapters whose names are no names of its modules",
            do="Leave state_dict out, or give the adapters other names",
        )
    return {key: state[key] for key in keys}


def _put_back(
    model: nn.Module, adapter_name: str, state: dict[str, Tensor], others: Sequence[str], keys: Mapping[str, Tensor]
) -> None:
    foreign = {key for other in others for key, _ in adapter_keys(model, other, every_name=True)}
    wholes = [(key, module) for key, module in _modules(model) if isinstance(module, AuxiliaryTrainingWrapper)]
    foreign_parts = tuple(f"{key}.modules_to_save.{other}." for key, _ in wholes for other in others)
    own_parts = tuple(f"{key}.modules_to_save.{adapter_name}." for key, _ in wholes)
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
            f"saving adapter '{adapter_name}' from a state_dict of your own",
            got=f"another adapter whose name is part of the key {needed[0]!r}, which PEFT leaves out for it",
            needed="adapters whose names are no names of the model's modules",
            do="Leave state_dict out, or give the adapters other names",
        )


def _is(one: Tensor, other: Tensor) -> bool:
    return one.device == other.device and (one.device.type == "meta" or one.data_ptr() == other.data_ptr())


def placed(model: nn.Module, adapter_name: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A file's tensors under the keys of the model; what belongs to no rotation keeps its key.

    Raises:
        AdapterFileError: the file holds different numbers for one layer that has several names.
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
                got=f"other numbers than under {own.stored!r}, which is the same layer in this model",
                needed="one set of numbers for one layer",
                do="Load the adapter on the base model that it was trained on",
            )
        found[key if own is None else str(own)] = tensor
    return found


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and (one.device.type == "meta" or torch.equal(one, other.to(one.device)))


def _modules(model: nn.Module, remove_duplicate: bool = True) -> Iterator[tuple[str, nn.Module]]:
    # The state of a model in FSDP has the names of the model inside.
    for key, module in model.named_modules(remove_duplicate=remove_duplicate):
        yield key.removeprefix(FSDP), module


def check_state(model: nn.Module, adapter_name: str, state: dict[str, Tensor]) -> None:
    """Stop before an adapter is loaded that does not belong to this model, or that holds no usable numbers.

    ``state`` has the model's own keys. Tensors of ``modules_to_save`` and biases are left to the host.

    Raises:
        AdapterFileError: an old layout, layers that the model has not or the file has not, other shapes, NaN or
        infinity.
    """
    # The model's own keys come first: a module may be called as the container of rotations is.
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
                f"{len(names)} rotations that {who} has not, the first {names[0]!r}"
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
    """Refuse to save an adapter of which a part is no rotation and would be missing in the file.

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
            got=f"{len(frozen)} frozen layers that no adapter file of ours can hold: {shortened(frozen)}",
            do="Keep the file that it was loaded from, or merge it and save the model",
        )
