"""Every transform keeps one contract: what it does to x, to the weight, backwards and in part is one and the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from orthotune.errors import AdapterFileError, OrthotuneError, UnsupportedLayerError
from orthotune.rotation.butterfly import Butterfly
from orthotune.rotation.cayley import cayley
from orthotune.rotation.family import FamilyTransform
from orthotune.rotation.family_registry import FAMILY
from orthotune.rotation.frozen import Blocks, SplitRows
from orthotune.rotation.geodesic import skew_power
from orthotune.rotation.packing import pack, unpack
from orthotune.rotation.spec import RotationSpec, Side
from orthotune.rotation.transform import TRANSFORMS, BlockTransform, angles_of

N, B, OTHER = 24, 4, 5
SIDES: tuple[Side, ...] = ("in", "out")


def _numbers(rows: int = N // B, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, B * (B - 1) // 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _blocks(side: Side, rows: int = N // B, **fields: Any) -> BlockTransform:
    return BlockTransform(RotationSpec(block_size=B, side=side, dtype=torch.float64, **fields), _numbers(rows))


def _skew(stages: int, rows: int) -> torch.Tensor:
    return torch.stack([unpack(_numbers(rows, seed), B) for seed in range(stages)])


#: trained transforms besides blocks: name -> transform, variant, further fields of the spec
ORTHOGONAL: dict[str, tuple[str, str, dict[str, Any]]] = {
    "reflections": ("reflections", "", {"rank": 4}),
    "orthogonal reflections": ("reflections", "gram_schmidt", {"rank": 4}),
    "odd reflections": ("reflections", "", {"rank": 3}),
    "trained butterfly": ("butterfly", "", {"block_size": B, "factors": 2}),
    "trained stage": ("butterfly", "", {"block_size": B, "factors": 1}),
    "angles": ("planes", "angles", {"block_size": B}),
    "givens": ("givens", "", {"block_size": 8}),
    "subspace": ("subspace", "rotation", {"rank": 4}),
    "subspace by a sketch": ("subspace", "rotation_lowrank", {"rank": 4}),
    "hyperplane": ("hyperplane", "ether", {"block_size": B}),
}
SCALED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "road_1": ("planes", "road_1", {"block_size": B}),
    "road_2": ("planes", "road_2", {"block_size": B}),
    "road_4": ("planes", "road_4", {"block_size": B}),
    "psoft": ("subspace", "psoft", {"rank": 4}),
    "ether+": ("hyperplane", "ether+", {"block_size": B}),
}


def _family(name: str, side: Side) -> FamilyTransform:
    transform, variant, fields = (ORTHOGONAL | SCALED)[name]
    spec = RotationSpec(transform=transform, variant=variant, side=side, dtype=torch.float64, **fields)
    kind = FAMILY[transform]
    generator = torch.Generator().manual_seed(4)
    v = 0.4 * torch.randn(kind.parameter_shapes(N, spec)["weight"], dtype=torch.float64, generator=generator)
    shape = (OTHER, N) if side == "in" else (N, OTHER)
    W = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    return kind(spec, v, basis=kind.basis_of(spec, W) if kind.needs_basis else None)


def _of_side(side: Side) -> dict[str, Any]:
    return {
        "exact": _blocks(side),
        "scaled": _blocks(side, scaled=True),
        "COFT": _blocks(side, eps=0.3, scaled=True),
        "shared": _blocks(side, rows=1, shared=True),
        "finished": Blocks(cayley(_skew(1, 6)[0]), side),
        "PEFT's butterfly": Butterfly(_skew(2, 6), "peft", side),
        "LyCORIS' butterfly": Butterfly(_skew(2, 6), "lycoris", side),
        "one stage": Butterfly(_skew(1, 6), "peft", side),
        "inverse butterfly": Butterfly(_skew(2, 6), "peft", side, backwards=True),
        **{name: _family(name, side) for name in ORTHOGONAL},
    }


CASES = {f"{name}, {side}": made for side in SIDES for name, made in _of_side(side).items()}
CASES["split rows"] = SplitRows((8, 16), (_blocks("out", rows=2), _blocks("out", rows=4)))
#: maps that are not orthogonal, and have no powers but the trivial ones
SERIES = {f"neumann, {side}": _blocks(side, map="neumann", eps=0.3) for side in SIDES}
SERIES |= {f"scales, {side}": Blocks(1.5 * cayley(_skew(1, 6)[0]), side) for side in SIDES}
SERIES |= {f"{name}, {side}": _family(name, side) for side in SIDES for name in SCALED}
#: of files: their stages may be ordered otherwise, and only trained ones are multiplied out
PRODUCTS = {name for name in CASES if "butterfly" in name and "trained" not in name}
#: orthogonal, but with determinant -1
REFLECTING = {f"{name}, {side}" for side in SIDES for name in ("odd reflections", "hyperplane")}

every = pytest.mark.parametrize("name", [*CASES, *SERIES])
orthogonal = pytest.mark.parametrize("name", list(CASES))


def _of(name: str) -> Any:
    return {**CASES, **SERIES}[name]


def _weight(transform: Any) -> torch.Tensor:
    shape = (OTHER, N) if transform.side == "in" else (N, OTHER)
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(9))


def _layer(transform: Any, W: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return transform.act(x) @ W.T if transform.side == "in" else transform.act(x @ W.T)


def test_every_registered_transform_is_checked_here() -> None:
    assert {type(made) for made in CASES.values()} == set(TRANSFORMS.values())
    variants = {
        (made.spec.transform, made.spec.variant) for made in {**CASES, **SERIES}.values() if hasattr(made, "basis")
    }
    alike = {("subspace", "psoft_lowrank")}  # the scales of one variant and the basis of another
    assert variants == {(name, variant) for name, kind in FAMILY.items() for variant in kind.variants} - alike


@every
def test_the_action_on_x_is_the_action_on_the_weight(name: str) -> None:
    made = _of(name)
    W = _weight(made)
    x = torch.randn(2, 3, W.shape[1], dtype=torch.float64)
    torch.testing.assert_close(_layer(made, W, x), x @ made.apply(W).T)
    assert not torch.allclose(made.apply(W), W), "the comparison means something only if the transform does something"


@every
def test_the_inverse_undoes(name: str) -> None:
    made = _of(name)
    W, x = _weight(made), torch.randn(2, 3, N, dtype=torch.float64)
    torch.testing.assert_close(made.inverse().apply(made.apply(W)), W)
    torch.testing.assert_close(made.inverse().act(made.act(x)), x)
    torch.testing.assert_close(made.inverse().inverse().apply(W), made.apply(W))


@orthogonal
def test_what_is_called_orthogonal_keeps_lengths(name: str) -> None:
    made, x = _of(name), torch.randn(7, N, dtype=torch.float64)
    assert made.orthogonal
    torch.testing.assert_close(made.act(x).norm(dim=-1), x.norm(dim=-1))


@pytest.mark.parametrize("name", list(SERIES))
def test_what_is_not_orthogonal_says_so(name: str) -> None:
    made, x = _of(name), torch.randn(7, N, dtype=torch.float64)
    assert not made.orthogonal
    assert not torch.allclose(made.act(x).norm(dim=-1), x.norm(dim=-1))


@orthogonal
def test_powers_lead_from_the_identity_over_the_transform_to_its_inverse(name: str) -> None:
    made = _of(name)
    W = _weight(made)
    torch.testing.assert_close(made.power(0).apply(W), W)
    assert torch.equal(made.power(1).apply(W), made.apply(W))
    torch.testing.assert_close(made.power(-1).apply(W), made.inverse().apply(W))


@pytest.mark.parametrize("name", sorted(set(CASES) - PRODUCTS - REFLECTING))
def test_powers_add_up(name: str) -> None:
    made = _of(name)
    W = _weight(made)
    torch.testing.assert_close(made.power(0.3).apply(made.power(0.7).apply(W)), made.apply(W))
    torch.testing.assert_close(made.power(0.25).apply(made.power(0.5).apply(W)), made.power(0.75).apply(W))
    assert not torch.allclose(made.power(0.5).apply(W), made.apply(W))


@pytest.mark.parametrize("name", ["road_1, in", "ether+, out"])
def test_powers_of_what_is_not_orthogonal_add_up_where_there_are_some(name: str) -> None:
    made = _of(name)
    W = _weight(made)
    torch.testing.assert_close(made.power(0.3).apply(made.power(0.7).apply(W)), made.apply(W))


@pytest.mark.parametrize("name", [*sorted(REFLECTING), "road_2, in", "psoft, out"])
def test_what_has_no_logarithm_is_refused_in_words(name: str) -> None:
    made = _of(name)
    with pytest.raises(OrthotuneError, match=r"power of 0\.5.*(determinant|reflection|rotation).*kind='linear'"):
        made.power(0.5)


@pytest.mark.parametrize("name", [*ORTHOGONAL, *SCALED])
@pytest.mark.parametrize("side", SIDES)
def test_the_gradient_of_a_transform_is_its_derivative(name: str, side: Side) -> None:
    made = _family(name, side)

    def dense(v: torch.Tensor) -> torch.Tensor:
        return made.operator_of(made.spec, v, made.basis, plain=True).dense()

    v = made.numbers.clone().requires_grad_()
    assert torch.autograd.gradcheck(dense, (v,), fast_mode=True)
    torch.testing.assert_close(dense(v), made.operator_of(made.spec, v, made.basis).dense())


@pytest.mark.parametrize("name", [*ORTHOGONAL, *SCALED])
def test_sizes_follow_from_the_shape_of_the_numbers(name: str) -> None:
    made = _family(name, "in")
    assert made.spec_of_shape(made.spec, made.numbers.shape) == made.spec


@pytest.mark.parametrize("name", sorted(PRODUCTS))
def test_a_part_of_a_product_is_refused_in_words(name: str) -> None:
    with pytest.raises(OrthotuneError, match=r"power of 0\.5.*several stages"):
        _of(name).power(0.5)


@pytest.mark.parametrize("name", ["trained butterfly, in", "trained butterfly, out", "givens, in"])
def test_the_path_of_a_product_is_the_geodesic_of_the_product(name: str) -> None:
    """From the identity to the map, orthogonal on the way, each plane at a constant speed: the shortest such path."""
    made = _of(name)
    numbers = made.numbers.double()

    def at(t: float) -> torch.Tensor:
        return made.raised(made.spec, numbers, t, made.basis).dense()

    eye = torch.eye(at(1.0).shape[-1], dtype=torch.float64)
    assert torch.equal(at(0.0), eye)
    for t in (0.2, 0.5, 0.8, 1.3):
        torch.testing.assert_close(at(t) @ at(t).mT, eye, rtol=0, atol=1e-12)
    torch.testing.assert_close(at(1 - 1e-9), at(1.0), rtol=0, atol=1e-8)  # continuous at its end: angles times 1e-9
    torch.testing.assert_close(at(1e-9), eye, rtol=0, atol=1e-8)
    speeds = [float((at(t + 1e-4) - at(t)).norm()) for t in (0.0, 0.3, 0.6, 0.9)]
    assert max(speeds) - min(speeds) < 1e-9
    if "butterfly" in name:  # the power of each stage is another path
        Q = unpack(numbers, made.spec.block_size)
        staged = made.operator_of(made.spec, pack(skew_power(Q, 0.5))).dense()
        assert (staged - at(0.5)).abs().max() > 1e-3


def test_a_product_that_mixes_too_many_features_has_no_power(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orthotune.rotation.stages.LARGEST_POWER", 4)
    with pytest.raises(OrthotuneError, match="stages that mixes more than 4 features"):
        _of("trained butterfly, in").power(0.5)


@every
def test_the_facts_of_a_transform(name: str) -> None:
    made = _of(name)
    angles = angles_of(made)
    assert angles.numel() and bool((angles >= 0).all()) and bool((angles <= torch.pi).all())
    if getattr(made, "kernel", None) is not None:
        assert (made.kernel.block_size, made.kernel.dtype) == (B, torch.float64)


def test_what_files_alone_hold_is_not_trained() -> None:
    spec = RotationSpec(block_size=B, rank=4)
    trained = {name for name, kind in TRANSFORMS.items() if kind.parameter_shapes(N, spec)}
    assert trained == {"blocks", *FAMILY} and RotationSpec().transform in trained
    assert BlockTransform.parameter_shapes(N, spec)["weight"] == _numbers().shape
    assert BlockTransform.parameter_shapes(N, replace(spec, shared=True))["weight"] == (1, 6)
    with pytest.raises(OrthotuneError, match="25 features"):
        BlockTransform.parameter_shapes(N + 1, spec)


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (Butterfly(_skew(1, 6), "peft", "in", legacy_conv=True), "memory"),
        (SplitRows((2, 3), (_blocks("in"), _blocks("in"))), "each run of outputs"),
        (replace(_blocks("in"), magnitude=torch.ones(OTHER)), "scale of the outputs"),
        (Blocks(cayley(_skew(1, 6)[0]), "in", torch.ones(OTHER)), "scale of the outputs"),
    ],
)
def test_what_exists_on_the_weight_only_says_so(made: Any, why: str) -> None:
    with pytest.raises(UnsupportedLayerError, match=why):
        made.act(torch.zeros(3, N, dtype=torch.float64))


def test_a_scale_of_the_outputs_comes_after_their_rotation() -> None:
    made = replace(_blocks("out"), magnitude=torch.rand(N, dtype=torch.float64) + 0.5)
    W, x = _weight(made), torch.randn(3, OTHER, dtype=torch.float64)
    torch.testing.assert_close(made.act(x @ W.T), x @ made.apply(W).T)
    for refused in (made.inverse, lambda: made.power(0.5)):
        with pytest.raises(OrthotuneError, match="scale of the rows"):
            refused()


@pytest.mark.parametrize("side", SIDES)
def test_blocks_that_are_cut_act_alike_and_have_no_inverse(side: Side) -> None:
    cut = replace(_blocks(side, rows=7), truncated=True)  # 28 places for 24 + 2 features
    W = torch.randn(*((OTHER, 26) if side == "in" else (26, OTHER)), dtype=torch.float64)
    x = torch.randn(3, W.shape[1], dtype=torch.float64)
    torch.testing.assert_close(_layer(cut, W, x), x @ cut.apply(W).T)
    assert not cut.fits(26) and not cut.orthogonal
    with pytest.raises(OrthotuneError, match="cut at the edge"):
        cut.inverse()
    with pytest.raises(AdapterFileError, match="does not fit"):
        cut.fits(30)
