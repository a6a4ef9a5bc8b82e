"""No graph break inside a rotated layer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from harness.cells import Cell
from harness.llama import PROJECTIONS, build
from orthotune import OFTConfig, get_peft_model
from orthotune.kernels.from_parameters import rotation_of
from orthotune.layers import parametrization
from orthotune.rotation.spec import RotationSpec
from tests.support.contract_cases import rotation_parameters
from tests.support.layer_models import linear

pytestmark = pytest.mark.slow

FIELDS: dict[str, dict[str, Any]] = {
    "exact": {},
    "shared": {"block_share": True},
    "neumann": {"use_cayley_neumann": True},
    "coft": {"coft": True, "eps": 0.3},
    "magnitude": {"magnitude": True},
    "out": {"side": "out"},
}


@pytest.fixture(autouse=True)
def _forget() -> Any:
    """Each test starts with an empty compiler."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("fields", FIELDS)
@pytest.mark.parametrize("mode", ["training", "evaluation", "inference"])
def test_a_rotated_linear_is_one_graph(mode: str, fields: str) -> None:
    model, plain = linear(**FIELDS[fields]), linear(**FIELDS[fields])
    for one in (model, plain):
        one.train(mode == "training")
    x = torch.randn(2, 3, 12, generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.set_grad_enabled(mode != "inference"):
        found, expected = compiled(x), plain(x)
    torch.testing.assert_close(
        found, expected, rtol=0, atol=1e-5
    )  # float32; the compiled path may sum in another order
    if mode != "inference":
        found.square().sum().backward()
        expected.square().sum().backward()
        pairs = zip(rotation_parameters(model).values(), rotation_parameters(plain).values(), strict=True)
        for parameter, other in pairs:
            torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-4, atol=1e-5)
            assert parameter.grad.any()


def test_dropout_is_one_graph_too() -> None:
    model = linear(module_dropout=0.5).train()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    x = torch.randn(3, 12)
    assert len({compiled(x).sum().item() for _ in range(12)}) > 1


def test_a_changed_parameter_is_seen_by_a_compiled_model() -> None:
    model = linear()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    x = torch.randn(3, 12)
    with torch.no_grad():
        before = compiled(x)
        for parameter in rotation_parameters(model).values():
            parameter.mul_(2)
        assert (compiled(x) - before).abs().max() > 1e-3
        torch.testing.assert_close(compiled(x), model(x), rtol=0, atol=1e-5)


def test_bfloat16_is_one_graph_too() -> None:
    model = linear(base=nn.Linear(12, 20).bfloat16()).train()
    x = torch.randn(3, 12, dtype=torch.bfloat16, requires_grad=True)
    found = torch.compile(model, fullgraph=True, backend="eager")(x)
    found.sum().backward()
    expected = model(x)
    # one rounding of bfloat16
    torch.testing.assert_close(found, expected, rtol=0, atol=2 * 2**-8 * expected.abs().max().item())


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Blocks of each computation of a rotation from its parameter."""
    sizes: list[int] = []

    def counted(spec: RotationSpec, v: torch.Tensor, known: Any = None) -> torch.Tensor:
        if known is None:
            sizes.append(v.shape[-2])
        return rotation_of(spec, v, known)

    monkeypatch.setattr(parametrization.rotation, "rotation_of", counted)
    return sizes


#: Inductor in this process, its C++ compiled once: it asks the compiler what vectors the processor has, four times.
PLAIN = {"compile_threads": 1, "cpp.vec_isa_ok": False, "cpp_cache_precompile_headers": False}


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_compiled_evaluation_computes_a_rotation_once_per_change(backend: str, computed: list[int]) -> None:
    model = linear().eval()
    x = torch.randn(3, 12)
    options: Any = PLAIN if backend == "inductor" else None
    compiled = torch.compile(model, fullgraph=True, backend=backend, options=options)
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(compiled(x), model(x), rtol=0, atol=1e-6)  # float32, sums in another order
        assert len(computed) == 1
        for parameter in rotation_parameters(model).values():
            parameter.mul_(2)
        torch.testing.assert_close(compiled(x), model(x), rtol=0, atol=1e-6)
        assert len(computed) == 2


def test_a_copy_of_a_compiled_layer_has_its_own_rotation() -> None:
    model = linear().eval()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in rotation_parameters(twin).values():
            parameter.zero_()
        x = torch.randn(3, 12)
        found = torch.compile(twin, fullgraph=True, backend="eager")(x)
        torch.testing.assert_close(found, twin(x), rtol=0, atol=1e-6)
        assert (found - model(x)).abs().max() > 1e-3


def test_an_exported_program_holds_the_rotation_as_plain_operations() -> None:
    model = linear().eval().requires_grad_(False)
    x = torch.randn(3, 12)
    with torch.no_grad():
        program = torch.export.export(model, (x,))
        torch.testing.assert_close(program.module()(x), model(x), rtol=0, atol=1e-5)
    assert "orthotune" not in str(program.graph)


@pytest.mark.parametrize("mode", ["training", "evaluation"])
def test_a_whole_model_is_one_graph(mode: str) -> None:
    torch.manual_seed(0)
    model, x, call = build(Cell(hidden=128, tokens=4, layers=2, dtype="float32"))
    adapted = get_peft_model(model, OFTConfig(target_modules=PROJECTIONS, oft_block_size=16, use_cayley_neumann=False))
    with torch.no_grad():
        for parameter in rotation_parameters(adapted).values():
            parameter.normal_(std=0.05)
    adapted.train(mode == "training")
    compiled = torch.compile(lambda x: call(adapted, x), fullgraph=True, backend="eager")
    with torch.set_grad_enabled(mode == "training"):
        found, expected = compiled(x), call(adapted, x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)  # float32, sums in another order
    if mode == "training":
        found.square().sum().backward()
        assert all(parameter.grad.any() for parameter in rotation_parameters(adapted).values())
