"""The layer of a serving engine beside the merged weights: slices, ranks, mixed batches, rows without an adapter."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from orthotune.errors import ConfigError, UnsupportedLayerError
from orthotune.formats.adapter_state import LayerState
from orthotune.rotation.packing import element_count
from orthotune.rotation.reflections import Reflections
from orthotune.rotation.spec import RotationSpec
from orthotune.serving.layer_map import LayerMap, cut, layer_map
from orthotune.serving.settings import ServingSettings
from orthotune.serving.slots import LayerSlots
from orthotune.serving.step import Step

CPU = torch.device("cpu")
#: q, k and v of 24 inputs
IN, SIZES = 24, (12, 6, 6)
#: float32 against float64: sums of 24 products of numbers around 1
CLOSE = {"atol": 2e-5, "rtol": 2e-5}
TOKENS = [0, -1, 2, 1, 0, 0, 0, 0, 0, 3, -1]


def _numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _held(seed: int, features: int, size: int, outputs: int | None = None, **spec: object) -> LayerState:
    shared = bool(spec.get("shared"))
    rows = 1 if shared else features // size
    magnitude = None if outputs is None else 1 + 0.3 * _numbers(seed + 50, outputs)
    return LayerState({"": 0.4 * _numbers(seed, rows, element_count(size))}, RotationSpec(**spec), magnitude)


#: slot -> the adapter's layer of each slice, None where it has none
ADAPTERS: dict[int, tuple[LayerState | None, ...]] = {
    0: (_held(1, IN, 4), _held(2, IN, 8), _held(3, IN, 4, 6)),
    1: (_held(4, IN, 8, 12), None, _held(4, IN, 8)),
    2: (_held(5, 12, 4, side="out"), _held(6, 6, 2, 6, side="out"), None),
    3: (_held(7, IN, 4, shared=True), _held(7, IN, 4, shared=True), _held(7, IN, 4, shared=True)),
}


class Base:
    """A layer with a weight and a bias that counts its products."""

    def __init__(self, biased: bool, dtype: torch.dtype = torch.float32) -> None:
        self.weight = _numbers(10, sum(SIZES), IN).to(dtype)
        self.bias = _numbers(11, sum(SIZES)).to(dtype) if biased else None
        self.products = 0

    def __call__(self, x: Tensor) -> Tensor:
        self.products += 1
        return linear(x, self.weight, self.bias)

    def slices(self) -> list[Callable[[Tensor], Tensor]]:
        def own(start: int, stop: int) -> Callable[[Tensor], Tensor]:
            return lambda x: linear(x, self.weight[start:stop], None if self.bias is None else self.bias[start:stop])

        return [own(0, 12), own(12, 18), own(18, 24)]


def _layer(dtype: torch.dtype = torch.float32, adapters: dict[int, tuple[LayerState | None, ...]] = ADAPTERS,
           bias: Tensor | None = None) -> LayerSlots:  # fmt: skip
    settings = ServingSettings((4, 8), "rotate")
    layer = LayerSlots("qkv", 4, (IN, IN), [(size, size) for size in SIZES], settings, dtype, CPU)
    for slot, held in adapters.items():
        maps = [None if own is None else layer_map(own, IN, size, "q") for own, size in zip(held, SIZES, strict=True)]
        layer.check(maps, biased=True)
        layer.put(slot, maps, bias)
    return layer


def _merged(base: Base, slot: int, x: Tensor) -> Tensor:
    weight = base.weight.double()
    if slot >= 0:
        parts = zip(weight.split(SIZES), ADAPTERS[slot], strict=True)
        weight = torch.cat([part if held is None else held.apply(part) for part, held in parts])
    return linear(x.double(), weight, None if base.bias is None else base.bias.double())


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("static", [True, False])
def test_every_row_is_that_of_its_merged_model(biased: bool, static: bool) -> None:
    base, layer, x = Base(biased), _layer(), _numbers(20, len(TOKENS), IN)
    if static:
        y = layer.run_static(x, base.bias, torch.tensor(TOKENS), base.slices())
    else:
        y = layer.run(x, base.bias, Step(TOKENS, CPU), base)
    expected = torch.stack([_merged(base, slot, row) for slot, row in zip(TOKENS, x, strict=True)])
    torch.testing.assert_close(y.double(), expected, **CLOSE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_the_base_keep_their_bits(dtype: torch.dtype) -> None:
    base, layer, x = Base(True, dtype), _layer(dtype), _numbers(20, len(TOKENS), IN).to(dtype)
    own = torch.tensor(TOKENS) < 0
    assert torch.equal(layer.run(x, base.bias, Step(TOKENS, CPU), base)[own], base(x)[own])


def test_rows_that_lie_in_runs_and_tokens_beyond_the_batch() -> None:
    """Long runs take another path than single rows; an engine may pad a batch with rows of no request."""
    base, layer = Base(True), _layer()
    tokens = [0] * 7 + [1] * 6 + [-1, 3]
    x = _numbers(21, len(tokens) + 2, IN)
    y = layer.run(x, base.bias, Step(tokens, CPU), base)
    expected = torch.stack([_merged(base, slot, row) for slot, row in zip([*tokens, -1, -1], x, strict=True)])
    torch.testing.assert_close(y.double(), expected, **CLOSE)


def test_equal_rotations_of_all_slices_cost_one_product_and_others_two() -> None:
    base, layer = Base(False), _layer()
    layer.run(_numbers(20, 3, IN), None, Step([3, -1, 3], CPU), base)
    assert base.products == 1
    layer.run(_numbers(20, 3, IN), None, Step([3, -1, 0], CPU), base)
    assert base.products == 3


def test_a_trained_bias_takes_the_place_of_that_of_the_base() -> None:
    base = Base(True)
    bias = _numbers(12, 6)
    layer = _layer(adapters={})
    layer.put(1, [None, LayerMap(bias=bias), None], base.bias)
    y = layer.run(x := _numbers(20, 2, IN), base.bias, Step([1, -1], CPU), base)
    assert base.bias is not None
    full = torch.cat([base.bias[:12], bias, base.bias[18:]])
    torch.testing.assert_close(y, torch.stack([linear(x[0], base.weight, full), base(x)[1]]), **CLOSE)


def test_a_slot_that_is_cleared_does_nothing() -> None:
    base, layer, x = Base(True), _layer(), _numbers(20, 4, IN)
    before = layer.nbytes
    layer.clear(0)
    layer.clear(0)
    assert 0 not in layer.held and not any(blocks[0].any() for blocks in layer.inputs) and layer.nbytes == before
    layer.put(2, [None, None, layer_map(_held(8, IN, 4), IN, 6, "v")], None)
    y = layer.run(x, base.bias, Step([2, 2, 2, 2], CPU), base)
    torch.testing.assert_close(y[:, :18], base(x)[:, :18], **CLOSE)


def test_a_map_that_is_not_made_of_blocks() -> None:
    spec = RotationSpec(transform="reflections", rank=2)
    held = Reflections(spec, _numbers(30, *Reflections.sizes(IN, spec).shape))
    layer, base, x = _layer(adapters={}), Base(True), _numbers(20, 3, IN)
    maps = [layer_map(held, IN, size, "q") for size in SIZES]
    layer.check(maps, True)
    layer.put(0, maps, None)
    layer.put(1, [layer_map(_held(1, IN, 4), IN, 12, "q"), None, None], None)
    y = layer.run(x, base.bias, Step([1, 0, -1], CPU), base)
    expected = linear(
        x[1].double(), held.apply(base.weight).double(), base.bias.double() if base.bias is not None else None
    )
    torch.testing.assert_close(y[1].double(), expected, **CLOSE)
    assert torch.equal(y[2], base(x)[2])


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_that_cut_the_outputs_together_are_the_layer(ranks: int) -> None:
    held, x = _held(40, IN, 8, 12), _numbers(41, 5, IN)
    weight = _numbers(42, 12, IN)
    own = 12 // ranks
    pieces = [
        _on_rank(held, weight[r * own : r * own + own], x, (0, IN), (r * own, r * own + own)) for r in range(ranks)
    ]
    torch.testing.assert_close(torch.cat(pieces, -1).double(), linear(x.double(), held.apply(weight).double()), **CLOSE)
    turned = _held(43, 12, 4, side="out")
    pieces = [
        _on_rank(turned, weight[r * own : r * own + own], x, (0, IN), (r * own, r * own + own)) for r in range(ranks)
    ] if own % 4 == 0 else []  # fmt: skip
    if pieces:
        expected = linear(x.double(), turned.apply(weight).double())
        torch.testing.assert_close(torch.cat(pieces, -1).double(), expected, **CLOSE)


@pytest.mark.parametrize("held", [_held(40, IN, 4, 12), _held(43, 12, 4, 12, side="out")], ids=["in", "out"])
def test_ranks_that_cut_the_inputs_add_up_to_the_layer(held: LayerState) -> None:
    x, weight, own = _numbers(41, 5, IN), _numbers(42, 12, IN), IN // 3
    pieces = []
    for rank in range(3):
        span = (rank * own, rank * own + own)
        pieces.append(_on_rank(held, weight[:, slice(*span)], x[:, slice(*span)], span, (0, 12)))
    torch.testing.assert_close(sum(pieces).double(), linear(x.double(), held.apply(weight).double()), **CLOSE)


def _on_rank(held: LayerState, weight: Tensor, x: Tensor, inputs: tuple[int, int], outputs: tuple[int, int]) -> Tensor:
    part = cut(layer_map(held, IN, 12, "o"), inputs, outputs, "o")
    sizes = (inputs[1] - inputs[0], IN), [(outputs[1] - outputs[0], 12)]
    layer = LayerSlots("o", 1, *sizes, ServingSettings((4, 8), "rotate"), torch.float32, CPU)
    layer.check([part], False)
    layer.put(0, [part], None)
    return layer.run(x, None, Step([0] * len(x), CPU), lambda rows: linear(rows, weight))


def test_a_block_in_two_ranks_is_refused() -> None:
    found = layer_map(_held(40, IN, 8), IN, 12, "model.o_proj")
    with pytest.raises(ConfigError, match=r"layer 'model.o_proj' cut by .*features 0 to 12 of a rank, in blocks of 8"):
        cut(found, (0, 12), (0, 12), "model.o_proj")


def test_what_is_not_reserved_is_refused_with_the_setting() -> None:
    layer = LayerSlots("down", 1, (IN, IN), [(12, 12)], ServingSettings((4,)), torch.float32, CPU)
    with pytest.raises(ConfigError, match=r"layer 'down'. Found: blocks of 8. Needed: a divisor of 4.*\[4, 8\]"):
        layer.check([layer_map(_held(1, IN, 8), IN, 12, "down")], False)
    with pytest.raises(ConfigError, match="'outputs': 'rotate'"):
        layer.check([layer_map(_held(1, 12, 4, side="out"), IN, 12, "down")], False)
    with pytest.raises(ConfigError, match="no bias here"):
        layer.check([LayerMap(bias=torch.zeros(12))], False)
    layer.check([layer_map(_held(1, IN, 2), IN, 12, "down")], False)  # 2 divides 4


def test_a_map_of_another_size_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"layer 'q'. Found: a rotation of 24 features. Needed: 32"):
        layer_map(_held(1, IN, 8), 32, 12, "q")
    with pytest.raises(ConfigError, match="a magnitude of 12 outputs. Needed: 16"):
        layer_map(_held(1, IN, 8, 12), IN, 16, "q")
    with pytest.raises(
        UnsupportedLayerError, match="serving layer 'q' unmerged. Found: rotations of k, q in one packed"
    ):
        layer_map(LayerState({"q": torch.zeros(3, 28), "k": torch.zeros(3, 28)}), IN, 16, "q")


@pytest.mark.parametrize("static", [True, False])
def test_what_a_table_looks_up_is_turned_and_scaled(static: bool) -> None:
    held = LayerState(
        {"": 0.4 * _numbers(30, IN // 4, element_count(4))}, magnitude=1 + 0.3 * _numbers(31, IN), embedding=True
    )
    layer = LayerSlots("embed", 2, (IN, IN), [(IN, IN)], ServingSettings((4, 8)), torch.float32, CPU)
    maps = [layer_map(held, IN, IN, "embed", table=True)]
    layer.check(maps, biased=False)
    layer.put(1, maps, None)
    y, tokens = _numbers(32, 5, IN), [1, -1, 0, 1, -1]
    if static:
        turned = layer.run_static(y, None, torch.tensor(tokens), [lambda rows: rows])
    else:
        turned = layer.run(y, None, Step(tokens, CPU), lambda rows: rows)
    expected = torch.where(torch.tensor(tokens)[:, None] == 1, held.apply(y.double()), y.double())
    torch.testing.assert_close(turned.double(), expected, **CLOSE)
    assert torch.equal(turned[[1, 2, 4]], y[[1, 2, 4]])


def test_part_of_a_step_has_the_slots_of_its_tokens() -> None:
    step = Step([0, 1, 1, -1, 2], CPU)
    part = step.part(1, 4)
    assert (len(step), len(part), sorted(part.present)) == (5, 3, [1])
    assert part.rows(frozenset({1})).index.tolist() == [0, 1]
