"""The dense float64 reference: the block-diagonal matrix written out in full and multiplied on the whole weight.

It is written from the papers and the file formats alone and shares no line with the library.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tests.support.contract_cases import Case
from tests.support.contract_layers import Inputs, Turn


def skew(v: Tensor) -> Tensor:
    """``(rows, n)`` -> ``(rows, b, b)``: the strict upper triangle row by row, minus its transpose."""
    size = round((1 + math.sqrt(1 + 8 * v.shape[-1])) / 2)
    upper = torch.zeros(*v.shape[:-1], size, size, dtype=v.dtype)
    rows, columns = zip(*[(i, j) for i in range(size) for j in range(i + 1, size)], strict=True)
    upper = upper.index_put((torch.arange(v.shape[0])[:, None], torch.tensor(rows), torch.tensor(columns)), v)
    return upper - upper.transpose(-1, -2)


def rotation(v: Tensor, config: dict[str, Any]) -> Tensor:
    """Stored numbers of one matrix ``(rows, n)`` -> its blocks ``(rows, b, b)``, which a frozen map has already."""
    if config.get("transform", "blocks") != "blocks":
        return part(TRANSFORMS[config["transform"]](v, config)[None], config)
    if v.dim() == 3:
        return part(v, config | {"kind": "linear"})
    size = round((1 + math.sqrt(1 + 8 * v.shape[-1])) / 2)
    Q = skew(v / (2 * math.sqrt(size - 1)) if config.get("scaled") else v)
    if config.get("coft"):
        norm = Q.pow(2).sum((-1, -2), keepdim=True).sqrt()
        Q = Q * (config["eps"] / math.sqrt(v.shape[0]) / norm).clamp(max=1)
    eye = torch.eye(size, dtype=v.dtype)
    if not config.get("use_cayley_neumann"):
        return part(torch.linalg.solve(eye + Q, eye - Q), config)  # the two factors commute
    factors = {"current": [1, 2, 2, 2, 1], "legacy": [1, 2, 2, 2]}[config.get("neumann_series", "current")]
    assert config.get("num_cayley_neumann_terms", 5) == len(factors)
    return part(sum(c * torch.linalg.matrix_power(Q, power) for power, c in enumerate(factors)), config)  # type: ignore[arg-type]


def reflections(v: Tensor, config: dict[str, Any]) -> Tensor:
    """The transpose of ``H_1 .. H_r``, one reflection after the other."""
    M = torch.eye(v.shape[-1], dtype=v.dtype)
    for u in v:
        M = (torch.eye(v.shape[-1], dtype=v.dtype) - 2 * u[:, None] * u / u.square().sum()) @ M
    return M


def butterfly(v: Tensor, config: dict[str, Any]) -> Tensor:
    """``S_m .. S_1`` for rows, each a permutation, blocks, and the permutation back."""
    blocks = rotation(v, {}).chunk(config["factors"])
    n, half = blocks[0].shape[0] * blocks[0].shape[-1], blocks[0].shape[-1] // 2
    M = torch.eye(n, dtype=v.dtype)
    for stage, R in enumerate(blocks):
        count, P = 1 << stage, torch.zeros(n, n, dtype=v.dtype)
        for place in range(n):
            rest, h = divmod(place, half)
            rest, side = divmod(rest, 2)
            group, s = divmod(rest, count)
            P[place, ((group * 2 + side) * count + s) * half + h] = 1
        M = P.T @ torch.block_diag(*R) @ P @ M
    return M


def planes(v: Tensor, config: dict[str, Any]) -> Tensor:
    """Planes of feature ``i`` and ``i + group / 2``, written entry by entry."""
    group, each = config["oft_block_size"], config.get("variant") == "road_2"
    n = v.shape[1] if each else 2 * v.shape[1]
    scale = 1 + v[1] if each else torch.ones_like(v[0])
    M = torch.zeros(n, n, dtype=v.dtype)
    for i in range(n):
        inside, start = i % group, i - i % group
        first = inside < group // 2
        other = i + (group // 2 if first else -(group // 2))
        k = i if each else start // 2 + inside % (group // 2)
        M = M.index_put((torch.tensor([i, i]), torch.tensor([i, other])),
                        scale[k] * torch.stack([v[0, k].cos(), (-1 if first else 1) * v[0, k].sin()]))  # fmt: skip
    return M


def givens(v: Tensor, config: dict[str, Any]) -> Tensor:
    """One plane after the other, each a matrix of its own."""
    size = config["oft_block_size"]
    M = torch.eye(v.shape[0] * size, dtype=v.dtype)
    for group, angles in enumerate(v):
        step, place = 1, 0
        while step < size:
            for k in range(0, size, 2 * step):
                i, j = group * size + k, group * size + k + step
                c, s = angles[place].cos(), angles[place].sin()
                G = torch.eye(M.shape[0], dtype=v.dtype)
                G = G.index_put((torch.tensor([i, i, j, j]), torch.tensor([i, j, i, j])), torch.stack([c, s, -s, c]))
                M, place = M @ G, place + 1
            step *= 2
    return M


def subspace(v: Tensor, config: dict[str, Any]) -> Tensor:
    """The transpose of ``I + Aᵀ (diag(b) C(Q)ᵀ diag(a) - I) A``."""
    A, r = config["basis"], config["r"]
    count = r * (r - 1) // 2
    R = rotation(v[:, :count], {})[0].mT
    a, b = 1 + v[0, count : count + r], 1 + v[0, count + r :]
    K = b[:, None] * R * a
    return torch.eye(A.shape[1], dtype=v.dtype) + (A.T @ (K - torch.eye(r, dtype=v.dtype)) @ A).T


def hyperplane(v: Tensor, config: dict[str, Any]) -> Tensor:
    """``I - u uᵀ / |u|² + w wᵀ / |w|²`` in each block."""
    eye = torch.eye(v.shape[1], dtype=v.dtype)
    pairs = [(u, w) for u, w in v.view(-1, 2, v.shape[1])]
    out = [eye - u[:, None] * u / u.square().sum() + w[:, None] * w / w.square().sum() for u, w in pairs]
    return torch.block_diag(*out)


#: transform -> its dense matrix of stored numbers
TRANSFORMS = {
    "reflections": reflections, "butterfly": butterfly, "planes": planes, "givens": givens,
    "subspace": subspace, "hyperplane": hyperplane,
}  # fmt: skip


def part(R: Tensor, config: dict[str, Any]) -> Tensor:
    """Blocks at the strength ``config["strength"]``: powers of the eigenvalues, or ``I + t (R - I)``."""
    t = config.get("strength", 1)
    if t == 1:
        return R
    if config.get("kind", "geodesic") != "geodesic":
        return torch.lerp(torch.eye(R.shape[-1], dtype=R.dtype).expand_as(R), R, t)
    values, vectors = torch.linalg.eig(R)  # of no special form: seeded noise has no equal eigenvalues
    return torch.linalg.solve(vectors.mT, (vectors * (t * values.log()).exp().unsqueeze(-2)).mT).mT.real


def dense(blocks: Tensor, features: int) -> Tensor:
    """Blocks along the diagonal; one shared block is repeated until it fills ``features``."""
    return torch.block_diag(*(list(blocks) * (features // (len(blocks) * blocks.shape[-1]))))


def turn_matrix(W: Tensor, stored: str, adapters: Sequence[tuple[dict[str, Any], Tensor, Tensor | None]]) -> Tensor:
    """A matrix ``(out, in)`` (or rows of tokens) under adapters ``(config, stored numbers, magnitude)`` in order."""
    if stored == "lookup":
        for config, v, scale in adapters:
            W = W @ dense(rotation(v, config), W.shape[-1])
            W = W if scale is None else W * scale
        return W
    total = torch.eye(W.shape[-1], dtype=W.dtype)
    for config, v, _ in adapters:
        if config["side"] == "in":
            points = config.get("points", 1)  # of a kernel, at each of which the channels are rotated alike
            own = dense(rotation(v, config), W.shape[-1] // points)
            total = total @ torch.kron(own, torch.eye(points, dtype=W.dtype))
    W = W @ total.T
    for config, v, scale in adapters:
        if config["side"] == "out":
            W = dense(rotation(v, config), W.shape[0]) @ W
        W = W if scale is None else scale[:, None] * W
    return W


def turn_parameter(W: Tensor, turn: Turn, adapters: Sequence[tuple[dict[str, Any], Tensor, Tensor | None]]) -> Tensor:
    """A parameter as it lies in memory, turned; expert by expert where there are several."""
    if turn.stored == "conv_transposed":
        return turn_parameter(W.transpose(0, 1), replace(turn, stored="conv"), adapters).transpose(0, 1)
    if turn.stored == "conv":
        points = math.prod(W.shape[2:])
        adapters = [(c | {"points": points} if c.get("conv") == "channels" else c, v, m) for c, v, m in adapters]
    if W.dim() == 3 and turn.stored != "conv":
        split = [
            [
                (
                    c | {"basis": c["basis"][i]} if "basis" in c else c,
                    v.chunk(len(W))[i],
                    None if m is None else m.chunk(len(W))[i],
                )
                for c, v, m in adapters
            ]
            for i in range(len(W))
        ]
        return torch.stack([turn_parameter(one, turn, own) for one, own in zip(W, split, strict=True)])
    matrix = W.T if turn.stored == "in_out" else W.reshape(W.shape[0], -1)
    turned = turn_matrix(matrix, turn.stored, adapters)
    return turned.T if turn.stored == "in_out" else turned.reshape(W.shape)


def wrapper(model: nn.Module, turn: Turn) -> nn.Module:
    """The layer of the adapted ``model`` that holds the adapters of ``turn``."""
    layer = model.get_submodule("base_model.model." + turn.module)
    while getattr(layer, "parameter_name", None) not in (None, turn.parameter.rpartition(".")[2]):
        layer = layer.base_layer
    return layer


def _numbers(model: nn.Module, turn: Turn, adapter: str, leaves: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
    """Stored numbers and magnitude of one matrix, in float64, from ``leaves`` by parameter name."""
    layer = wrapper(model, turn)
    prefix = next(name for name, module in model.named_modules() if module is layer)
    inside = f"{adapter}.{turn.part}".rstrip(".")
    name = next(n for c in ("oft_R", "oft_embedding_R") if (n := f"{prefix}.{c}.{inside}.weight") in leaves)
    scale = leaves.get(f"{prefix}.oft_magnitude.{adapter}.weight")
    return leaves[name], scale


def basis_of(model: nn.Module, turn: Turn, adapter: str) -> list[Tensor]:
    """The frozen basis of an adapter, in float64: one that the layer found itself, because its signs are arbitrary."""
    found = dict(wrapper(model, turn).named_buffers())
    return [p.detach().double() for key, p in found.items() if key.endswith(f".{adapter}.basis")]


def _magnitude_of(turn: Turn, turns: Sequence[Turn], scale: Tensor | None, rows: dict[Turn, int]) -> Tensor | None:
    """The share of a module's magnitude that belongs to ``turn``: parts lie one after another."""
    if scale is None:
        return None
    start = 0
    for other in turns:
        if other == turn:
            return scale[start : start + rows[turn]]
        if other.module == turn.module and other.part:
            start += rows[other]
    raise AssertionError(turn)


def run(
    case: Case, model: nn.Module, inputs: Inputs, adapters: dict[str, dict[str, Any]], leaves: dict[str, Tensor]
) -> Tensor:
    """The output of the base module in float64 with every weight replaced by its turned form.

    ``adapters`` gives name -> config in the order in which they act; ``leaves`` all their parameters in float64.
    """
    base = case.base().double()
    weights = dict(base.named_parameters())
    turned: dict[str, Tensor] = {}
    heights = {t: (t.rows[1] - t.rows[0]) if t.rows else len(weights[t.parameter]) for t in case.kind.turns}
    for turn in case.kind.turns:
        own = []
        for name, config in adapters.items():
            if turn in config.get("frozen", {}):
                held = config["frozen"][turn]
                scale = None if held.magnitude is None else held.magnitude.double()
                own.append((config | {"conv": "kernel"}, held.matrices.double(), scale))  # it maps all of an input
                continue
            v, scale = _numbers(model, turn, name, leaves)
            if scale is not None and config.get("kind", "geodesic") == "geodesic":
                scale = scale ** config.get("strength", 1)
            if turn_basis := basis_of(model, turn, name):
                config = config | {"basis": turn_basis[0]}
            own.append((config, v, _magnitude_of(turn, case.kind.turns, scale, heights) if turn.part else scale))
        weight = weights[turn.parameter]
        share = weight[slice(*turn.rows)] if turn.rows else weight
        result = turn_parameter(share, turn, own)
        turned[turn.parameter] = torch.cat([turned[turn.parameter], result]) if turn.parameter in turned else result
    return functional_call(base, turned, tuple(x.double() if x.is_floating_point() else x for x in inputs))
