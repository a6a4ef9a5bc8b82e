"""``oft_diag`` of LyCORIS 2.0: the orthogonal matrix of each block, multiplied by the scale of its rows."""

from __future__ import annotations

import torch
from torch import Tensor

from orthotune.errors import AdapterFileError
from orthotune.formats.adapter_file import AdapterFile
from orthotune.formats.adapter_state import AdapterState, LayerState
from orthotune.formats.codecs.dense_blocks import refuse_foreign, square_blocks
from orthotune.formats.codecs.oft_blocks import unused_warning
from orthotune.rotation.cayley import inverse_cayley
from orthotune.rotation.frozen import Blocks, FrozenMap
from orthotune.rotation.measure import orthogonality_error
from orthotune.rotation.packing import pack
from orthotune.rotation.spec import RotationSpec

#: Largest orthogonality error, per sqrt(b), of a rotation that was rounded to bfloat16.
LOOSEST = 0.05
#: Largest difference from 1 of the row norms of a float32 rotation.
CLOSE = 16 * torch.finfo(torch.float32).eps
#: Beyond this value, the skew-symmetric matrix of a rotation by almost pi is not precise enough in float32.
LARGEST_SKEW = 1e3


def read_orthogonal(file: AdapterFile, format: str) -> AdapterState:
    """Read an adapter: ``M = Rᵀ`` as a rotation where it has a skew-symmetric matrix, otherwise as dense blocks.

    Args:
        file: opened, its tensors not read yet.
        format: id of the format.

    Raises:
        AdapterFileError: a tensor has a wrong shape, belongs to another method, or is not a scaled rotation.
    """
    found = file.layers("oft_diag")
    rest = refuse_foreign(file, found)
    layers: dict[str, LayerState] = {}
    transforms: dict[str, FrozenMap] = {}
    for stem, names in found.items():
        name = names["oft_diag"]
        R = square_blocks(file, name, file.read([name])[name], 3)
        scale = torch.linalg.vector_norm(R.double(), dim=-1)
        _check_orthogonal(file, name, R.double(), scale)
        state = _as_rotation(R, scale)
        if state is None:
            transforms[stem] = Blocks(R.mT.contiguous())
        else:
            layers[stem] = state
    return AdapterState(
        layers, {}, file.read(rest), file.path, format, transforms, {stem: stem for stem in found},
        file.metadata, unused_warning(rest),
    )  # fmt: skip


def _check_orthogonal(file: AdapterFile, name: str, R: Tensor, scale: Tensor) -> None:
    unit = R / scale.clamp(min=1e-12).unsqueeze(-1)
    if orthogonality_error(unit).max() <= LOOSEST * R.shape[-1] ** 0.5:
        return
    eye = torch.eye(R.shape[-1], dtype=R.dtype)
    if orthogonality_error(R + eye).max() <= LOOSEST * R.shape[-1] ** 0.5:
        got = "a rotation minus the identity, as builds before LyCORIS 2.0 wrote"
    else:
        got = f"{orthogonality_error(unit).max():.2g} as the largest norm of R Rᵀ - I"
    raise AdapterFileError(
        f"Tensor '{name}' of {file.path} is not a rotation", got=got, needed="orthogonal blocks, as LyCORIS 2.0 wrote",
        do="Merge it with the build that wrote it",
    )  # fmt: skip


def _as_rotation(R: Tensor, scale: Tensor) -> LayerState | None:
    """The layer with skew-symmetric matrices, if they exist: the scale must be the same in all rows of a block."""
    size = scale.mean(dim=-1, keepdim=True)
    if (scale / size - 1).abs().max() > CLOSE:
        return None
    plain = bool((size - 1).abs().max() <= CLOSE)
    unit = R.double() if plain else R.double() / size.unsqueeze(-1)
    try:
        vector = pack(inverse_cayley(unit.mT))
    except torch.linalg.LinAlgError:
        return None
    if not vector.isfinite().all() or vector.abs().max() > LARGEST_SKEW:
        return None
    magnitude = None if plain else size.expand_as(scale).flatten().to(R.dtype)
    state = LayerState({"": vector.to(R.dtype)}, RotationSpec(side="out"), magnitude, blend="linear")
    # A rotation saved in half precision is not orthogonal to float32 precision: then its dense blocks are kept.
    close = torch.allclose(state.rotation().double(), unit.mT, rtol=0, atol=2e-6)
    return state if close else None
