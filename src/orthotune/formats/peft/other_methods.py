"""What the folders of PEFT's other orthogonal methods have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from torch import Tensor

from orthotune.errors import AdapterFileError, UnsupportedLayerError
from orthotune.files.names import escaped
from orthotune.formats.adapter_file import CONFIG_NAME, AdapterFile
from orthotune.formats.adapter_state import AdapterState
from orthotune.formats.codecs.dense_blocks import refuse_foreign
from orthotune.formats.peft.names import bare
from orthotune.rotation.frozen import FrozenMap

Value = TypeVar("Value")


def read_other(
    file: AdapterFile,
    format: str,
    method: str,
    suffixes: Sequence[str],
    layer: Callable[[str, Mapping[str, Tensor]], FrozenMap],
    optional: Sequence[str] = (),
) -> AdapterState:
    """Read the folder of a method whose layers are trained transforms.

    Args:
        file: opened, its tensors not read yet.
        format: id of the format.
        method: the ``peft_type``.
        suffixes: of the tensors of a layer, all of which must be there.
        layer: makes the transform of a layer of its name and tensors.
        optional: further tensors that a layer may have.

    Raises:
        AdapterFileError: the config is missing or of another method, or a layer lacks a tensor.
    """
    if file.config is None or file.config.get("peft_type") != method:
        raise AdapterFileError(
            f"{file.path} is from PEFT's {method}", got="no config of it beside the file",
            needed=f"{CONFIG_NAME} with peft_type {method!r}", do="Name the folder that holds both files",
        )  # fmt: skip
    found = file.layers("|".join(suffix.replace(".", r"\.") for suffix in (*suffixes, *optional)))
    transforms: dict[str, FrozenMap] = {}
    prefixes = {}
    for stem, names in found.items():
        if not set(suffixes) <= set(names):
            raise AdapterFileError(
                f"Layer '{escaped([stem])}' of {file.path}", got=escaped(names), needed=" and ".join(suffixes)
            )
        tensors = file.read(names.values())
        name = bare(stem)
        transforms[name] = layer(name, {suffix: tensors[key] for suffix, key in names.items()})
        prefixes[name] = stem
    rest = refuse_foreign(file, found)
    other = {bare(name): tensor for name, tensor in file.read(rest).items()}
    return AdapterState({}, dict(file.config), other, file.path.parent, format, transforms, prefixes, file.metadata)


def one_value(field: str, values: Mapping[str, Value]) -> Value:
    """The value that all layers share.

    Args:
        field: of PEFT's config, for the message.
        values: layer -> value; at least one layer.

    Raises:
        UnsupportedLayerError: layers differ, and PEFT's config holds the field once.

    Example:
        >>> one_value("r", {"q": 8, "k": 8})
        8
    """
    first = next(iter(values.values()))
    if other := next((name for name, value in values.items() if value != first), None):
        raise UnsupportedLayerError(
            "one PEFT config for all layers", got=f"{field}={first} and {values[other]} (layer '{other}')",
            needed="the same value in every layer", do="Write it for orthotune (--to orthotune)",
        )  # fmt: skip
    return first
