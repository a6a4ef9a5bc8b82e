"""``extract``: the adapter of rotations that comes nearest to a finetuned model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from orthotune.errors import AdapterFileError, ConfigError
from orthotune.files.output import new_folder
from orthotune.formats.adapter_state import AdapterState, LayerState
from orthotune.formats.convert import convert
from orthotune.formats.writers import write_adapter
from orthotune.operations.base_model import load_base
from orthotune.rotation.blocks import nearest_divisor
from orthotune.rotation.cayley import inverse_cayley
from orthotune.rotation.frozen import FrozenMap
from orthotune.rotation.measure import rotation_angles
from orthotune.rotation.packing import pack
from orthotune.rotation.spec import RotationSpec, Side
from orthotune.rotation.subspace import Subspace

#: rounds in which rotation and magnitude are fitted in turn
ROUNDS = 8
#: larger numbers of a skew matrix stand for angles within 1e-3 of pi, which float32 does not tell from pi
LARGEST = 1e3


@dataclass(frozen=True)
class ExtractedLayer:
    """How well a rotation describes the change of one weight.

    Attributes:
        layer: name of the module.
        residual: Frobenius norm of what is left of the change, divided by that of the change: 0 is all of it, 1 none.
        change: Frobenius norm of the change, divided by that of the weight.
        angle_max: largest angle of the rotation, in radians.
        still: blocks that were left alone, because the nearest rotation of them has an angle of pi.
    """

    layer: str
    residual: float
    change: float
    angle_max: float
    still: int = 0


@dataclass(frozen=True)
class Extracted:
    """What :func:`extract` wrote.

    Attributes:
        out: the folder.
        layers: one entry for each layer of the adapter, in the order of the model.
        left: parameters that the finetuning has changed and the adapter does not hold.
    """

    out: Path
    layers: list[ExtractedLayer] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    @property
    def residual(self) -> float:
        """Root of the mean square of the residuals over the layers."""
        return math.sqrt(sum(row.residual**2 for row in self.layers) / max(len(self.layers), 1))


def extract(
    base: str | Path,
    finetuned: str | Path,
    out: str | Path,
    *,
    block_size: int = 32,
    rank: int | None = None,
    side: Side = "in",
    magnitude: bool = True,
    overwrite: bool = False,
) -> Extracted:
    """Write the adapter whose rotations, and magnitudes, come nearest to a finetuned model.

    For each linear layer the rotation of every block is the solution of the orthogonal Procrustes problem, the
    orthogonal ``X`` of determinant 1 that minimizes ``|W_j X - W'_j|`` over the columns of the block; with a magnitude,
    both are fitted in turn. The result has, for each layer, how much of its change is left unexplained: rotations
    cannot express most changes of full finetuning.

    Args:
        base: path or hub name of the model before.
        finetuned: path or hub name of the same model after.
        out: folder of the adapter; it appears when it is complete.
        block_size: of the rotations; where it does not divide a layer's width, the nearest divisor is taken.
        rank: rotate the leading singular directions of each weight instead of blocks, so many of them.
        side: rotate inputs or outputs.
        magnitude: fit a scale for each output, too. Only with blocks of the inputs.
        overwrite: replace what is at ``out``.

    Returns:
        The residual of each layer, and the parameters that the adapter leaves out.

    Raises:
        ConfigError: contradicting options.
        AdapterFileError: the models have other layers or shapes, or no linear layer has changed.
        OutputError: ``out`` exists already or cannot be written to.

    Source: Schoenemann 1966, "A generalized solution of the orthogonal Procrustes problem"; for adapters: OrthoMerge,
    arXiv 2602.05943.

    Example:
        >>> extract("models/base", "models/finetuned", "adapter").residual  # doctest: +SKIP
        0.83
    """
    if magnitude and (side == "out" or rank is not None):
        raise ConfigError(
            "a magnitude with " + ("a subspace" if rank is not None else "rotated outputs"),
            needed="blocks of the inputs", do="Pass magnitude=False (--no-magnitude)",
        )  # fmt: skip
    if block_size < 2 or (rank is not None and rank < 2):
        raise ConfigError(f"block_size={block_size}, rank={rank}", needed="at least 2: one dimension does not rotate")
    one, other = (load_base(str(place), "float32").model for place in (base, finetuned))
    before, after = dict(one.named_parameters()), dict(other.named_parameters())
    if differ := [name for name in before if name not in after or after[name].shape != before[name].shape]:
        raise AdapterFileError(
            f"{finetuned} as a finetuned {base}", got=f"no parameter '{differ[0]}' of the base's shape",
            needed="the same model before and after", do="Check that both are of one architecture and size",
        )  # fmt: skip
    changed = [name for name, weight in before.items() if not torch.equal(weight, after[name])]
    layers: dict[str, LayerState] = {}
    transforms: dict[str, FrozenMap] = {}
    rows, held = [], set()
    with torch.no_grad():
        for name, W, V in _pairs(one, other):
            if f"{name}.weight" not in changed:
                continue
            # A map of one feature is no rotation: the layer stays in the list of what the adapter leaves out.
            if (W.shape[1] if side == "in" else W.shape[0]) == 1 or (rank is not None and 1 in W.shape):
                continue
            made: Any
            if rank is None:
                made, row = _blocks(name, W, V, block_size, side, magnitude)
                layers[name] = made
            else:
                made, row = _subspace(name, W, V, min(rank, *W.shape), side)
                transforms[name] = made
            rows.append(row)
            held.add(f"{name}.weight")
    if not rows:
        raise AdapterFileError(
            f"{finetuned} as a finetuned {base}", got=f"{len(changed)} changed parameters, none of a linear layer",
            needed="a linear layer that has changed, of more than one feature",
        )  # fmt: skip
    state = AdapterState(layers, {"base_model_name_or_path": str(base)}, transforms=transforms)
    with new_folder(Path(out), overwrite=overwrite) as folder:
        ready, _ = convert(state, "orthotune")
        write_adapter(ready, folder, "orthotune", {"": [name for name, _ in one.named_modules()]})
    return Extracted(Path(out), rows, [name for name in changed if name not in held])


def _pairs(one: nn.Module, other: nn.Module) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name and weights ``(out, in)`` of every linear layer but the output embedding, before and after, in float64."""
    outputs: Any = getattr(one, "get_output_embeddings", lambda: None)()
    modules = dict(other.named_modules())
    for name, module in one.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and module is not outputs:
            pair = [module.weight.double(), modules[name].get_parameter("weight").double()]
            W, V = (weight.mT if isinstance(module, Conv1D) else weight for weight in pair)
            yield name, W, V


def _blocks(
    name: str, W: Tensor, V: Tensor, block_size: int, side: Side, magnitude: bool
) -> tuple[LayerState, ExtractedLayer]:
    features = W.shape[1] if side == "in" else W.shape[0]
    size = nearest_divisor(features, min(block_size, features))
    if size < 2:
        size = features
    # Runs of the rotated side, one for each block: (blocks, vectors, b).
    old, new = ((m if side == "in" else m.mT).unflatten(1, (-1, size)).transpose(0, 1) for m in (W, V))
    scale = W.new_ones(W.shape[0])
    for _ in range(ROUNDS if magnitude else 1):
        X = nearest(scale[:, None] * old if magnitude else old, new)
        if not magnitude:
            break
        moved = (old @ X).transpose(0, 1).flatten(1)
        norms = moved.square().sum(1)
        scale = torch.where(norms > 0, (moved * V).sum(1) / norms.clamp(min=1e-300), 1.0)
    # W' = W Rᵀ for inputs, so that X is Rᵀ; for outputs the transposed runs give X = Mᵀ.
    v, still = _packed(X.mT)
    made = LayerState({"": v.float()}, RotationSpec(side=side), scale.float() if magnitude else None)
    return made, _row(name, W, V, made, still)


def _subspace(name: str, W: Tensor, V: Tensor, rank: int, side: Side) -> tuple[Subspace, ExtractedLayer]:
    spec = RotationSpec(transform="subspace", variant="rotation", side=side, rank=rank)
    A = Subspace.basis_of(spec, W)
    old, new = ((m if side == "in" else m.mT) @ A.mT for m in (W, V))
    v, still = _packed(nearest(old, new).mT[None])
    made = Subspace(spec, v.float(), basis=A.float())
    return made, _row(name, W, V, made, still)


def nearest(old: Tensor, new: Tensor) -> Tensor:
    """The rotations ``X`` that minimize ``|old X - new|`` in the Frobenius norm.

    Shapes: ``(..., vectors, b)`` twice, returns ``(..., b, b)``.

    Source: Kabsch 1976: the orthogonal Procrustes problem with determinant 1.

    Example:
        >>> one = torch.eye(2)
        >>> nearest(one, torch.tensor([[0.0, 1.0], [-1.0, 0.0]]))
        tensor([[ 0.,  1.],
                [-1.,  0.]])
    """
    U, _, Vh = torch.linalg.svd(old.mT @ new)
    sign = torch.linalg.det(U @ Vh).sign()
    U = torch.cat([U[..., :-1], U[..., -1:] * sign[..., None, None]], -1)
    return U @ Vh


def _packed(R: Tensor) -> tuple[Tensor, int]:
    """Packed skew matrices of rotations ``(blocks, b, b)``, and how many of them became the identity."""
    try:
        v = pack(inverse_cayley(R))
    except torch.linalg.LinAlgError:
        each = [_one(block) for block in R]
        v = torch.stack(each)
    far = ~(v.isfinite().all(-1) & (v.abs().amax(-1) < LARGEST))
    return torch.where(far[:, None], 0.0, v), int(far.sum())


def _one(R: Tensor) -> Tensor:
    try:
        return pack(inverse_cayley(R))
    except torch.linalg.LinAlgError:
        return R.new_full((R.shape[-1] * (R.shape[-1] - 1) // 2,), math.inf)


def _row(name: str, W: Tensor, V: Tensor, made: LayerState | Subspace, still: int) -> ExtractedLayer:
    change = (V - W).norm()
    found = made.apply(W.float()).double()
    angle = max((float(rotation_angles(R).max()) for _, R in made.factors()), default=0.0)
    return ExtractedLayer(name, float((found - V).norm() / change), float(change / W.norm()), angle, still)
