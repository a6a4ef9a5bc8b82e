"""Checks of an adapter's tensors before they go into a model."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from orthotune.errors import AdapterFileError
from orthotune.files.names import shortened
from orthotune.layers.base import OFTLayer
from orthotune.tuner.adapter_keys import PREFIX, adapter_keys

OLD_KEYS = (".oft_r", ".oft_s")
#: what a key looks like that the model does not have, and that some model has for a rotation
ROTATION = re.compile(r"(^|\.)(oft_R|oft_embedding_R|oft_magnitude)(\.|$)")


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
    old = [k for k in foreign if k.endswith(OLD_KEYS) or any(mark + "." in k for mark in OLD_KEYS)]
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
        for layer in model.modules()
        if isinstance(layer, OFTLayer) and layer.frozen_map(adapter_name) is not None
    ]
    if frozen:
        raise AdapterFileError(
            f"saving adapter '{adapter_name}'",
            got=f"{len(frozen)} frozen layers that no adapter file of ours can hold: {shortened(frozen)}",
            do="Keep the file that it was loaded from, or merge it and save the model",
        )
