"""``oft_diag`` of LyCORIS 2.0: the finished rotation of each block, with the scale of the rows folded in."""

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

#: A rotation that was rounded to bfloat16, whose numbers have 8 bits, is not further from orthogonal than this.
LOOSEST = 0.05
#: Lengths of rows of a float32 rotation differ from 1 by so much.
CLOSE = 16 * torch.finfo(torch.float32).eps
#: Beyond, the skew matrix of a rotation by almost pi has lost the digits that float32 would need.
LARGEST_SKEW = 1e3


def read_finished(file: AdapterFile, format: str) -> AdapterState:
    """The adapter: ``M = Rᵀ`` as a rotation where a skew matrix stands for it, otherwise as finished matrices.

    Raises:
        AdapterFileError: a tensor has a wrong shape, belongs to another method, or is no rotation of any scale.
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
        got = "a rotation less the identity, as builds before LyCORIS 2.0 wrote"
    else:
        got = f"{orthogonality_error(unit).max():.2g} as the largest norm of R Rᵀ - I"
    raise AdapterFileError(
        f"Tensor '{name}' of {file.path} is no finished rotation", got=got, needed="what LyCORIS 2.0 wrote",
        do="Only the build that wrote it knows its meaning: merge it there",
    )  # fmt: skip


def _as_rotation(R: Tensor, scale: Tensor) -> LayerState | None:
    """The layer with a skew matrix, if there is one; the scale stands before it, so it must be one for each block."""
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
    # A rotation that was saved in half precision is none any more, to float32: then its matrices are what counts.
    close = torch.allclose(state.rotation().double(), unit.mT, rtol=0, atol=2e-6)
    return state if close else None
