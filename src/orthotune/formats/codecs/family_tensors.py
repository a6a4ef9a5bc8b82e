"""The stored parameters of transforms other than blocks, as orthotune's own folder holds them."""

from __future__ import annotations

from torch import Tensor

from orthotune.errors import AdapterFileError, OrthotuneError
from orthotune.formats.adapter_file import AdapterFile
from orthotune.rotation.family import FamilyTransform
from orthotune.rotation.family_registry import family_of
from orthotune.rotation.spec import RotationSpec


def family_layer(
    file: AdapterFile, key: str, tensor: Tensor, spec: RotationSpec, *, experts: bool = False
) -> FamilyTransform:
    """The transform of one layer, with the sizes that its tensor shows.

    Args:
        file: of the tensor, for messages.
        key: name of the tensor.
        tensor: the stored parameters.
        spec: what the config says of the layer.
        experts: the rows of several experts lie one after the other, and the config has their sizes.

    Raises:
        AdapterFileError: the tensor is no such transform.
    """
    kind = family_of(spec.transform)
    assert kind is not None, "blocks are read elsewhere"
    if tensor.dim() != 2 or not tensor.numel() or not tensor.is_floating_point():
        raise AdapterFileError(
            f"Tensor '{key}' of {file.path}", got=f"shape {list(tensor.shape)}, {tensor.dtype}",
            needed=f"the parameters of {spec.transform}: two dimensions, floating-point numbers",
        )  # fmt: skip
    try:
        found = spec if experts else kind.spec_of_shape(spec, tensor.shape)
        made = kind(found, tensor)
        if wrong := kind.fault(found, tensor):
            raise OrthotuneError("its numbers", got=wrong)
    except OrthotuneError as error:
        raise AdapterFileError(
            f"Tensor '{key}' of {file.path} as {spec.transform}", got=error.got or error.given, needed=error.needed
        ) from error
    return made


def refuse_parts(file: AdapterFile, layer: str, parts: dict[str, Tensor]) -> Tensor:
    """The only tensor of a layer.

    Raises:
        AdapterFileError: the layer has several matrices, which only the model itself puts together.
    """
    if set(parts) != {""}:
        raise AdapterFileError(
            f"Layer '{layer}' of {file.path}", got=f"parts {', '.join(parts)} of a transform other than blocks",
            needed="layers with one matrix", do="Load it with PeftModel.from_pretrained",
        )  # fmt: skip
    return parts[""]


def checked_basis(file: AdapterFile, made: FamilyTransform, basis: Tensor | None) -> Tensor | None:
    """The frozen basis of a transform that needs one, None for all others.

    Raises:
        AdapterFileError: it is missing, or has another number of rows than the transform has dimensions.
    """
    if not made.needs_basis:
        return None
    if basis is None or basis.dim() < 2 or basis.shape[-2] != made.spec.rank:
        raise AdapterFileError(
            f"{file.path} as {made.spec.transform}",
            got="no basis" if basis is None else f"a basis of shape {list(basis.shape)}",
            needed=f"{made.spec.rank} rows beside the numbers of the layer",
        )
    return basis
