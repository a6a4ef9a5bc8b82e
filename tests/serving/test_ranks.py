"""Which inputs and outputs a tensor-parallel rank holds, from the sizes that the engine's layers state."""

from __future__ import annotations

from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from orthotune.errors import UnsupportedLayerError
from orthotune.serving.layer_map import LayerMap


def _qkv(plugin: ModuleType, rank: int, ranks: int, key_heads: int) -> Any:
    """Four heads of 8 over 32 features, as the engine cuts them; key heads are copied where ranks are more."""
    copies = max(1, ranks // key_heads)
    q, kv = 32 // ranks, 8 * max(1, key_heads // ranks)
    base = SimpleNamespace(
        total_num_heads=4, total_num_kv_heads=key_heads, head_size=8, input_size=32,
        output_sizes=[32, kv * ranks, kv * ranks], output_size=32 + 2 * kv * ranks,
    )  # fmt: skip
    return _sized(
        plugin, base_layer=base, n_slices=3, output_slices=(q, kv, kv), kv_shard_id=rank // copies, input_size=32,
        output_ids=(rank, rank // copies, rank // copies), tp_rank=rank,
    )  # fmt: skip


def _sized(plugin: ModuleType, **facts: Any) -> Any:
    """A layer of the engine, of which only sizes and the rank are known."""
    layer = SimpleNamespace(orthotune_outputs_rotate=True, **facts)
    layer.orthotune_input_span = partial(plugin.RotatedLinear.orthotune_input_span, layer)
    layer.orthotune_spans = partial(plugin.RotatedLinear.orthotune_spans, layer)
    return layer


def _row(plugin: ModuleType, rank: int, ranks: int) -> Any:
    base = SimpleNamespace(input_size=32, output_size=24)
    return _sized(plugin, base_layer=base, n_slices=1, input_size=32 // ranks, output_size=24, tp_rank=rank)


@pytest.mark.parametrize(("ranks", "key_heads"), [(1, 2), (2, 2), (2, 4), (4, 2)])
def test_ranks_hold_every_output_of_q_k_and_v(plugin: ModuleType, ranks: int, key_heads: int) -> None:
    held: list[set[int]] = [set(), set(), set()]
    for rank in range(ranks):
        for own, span in zip(held, plugin.spans(_qkv(plugin, rank, ranks, key_heads)), strict=True):
            assert span is not None
            own |= set(range(span.start, span.stop))
    assert held == [set(range(32)), set(range(8 * key_heads)), set(range(8 * key_heads))]


def test_a_map_of_one_slice_and_a_map_of_the_fused_layer(plugin: ModuleType) -> None:
    layer = _qkv(plugin, 1, 2, 2)
    scale = torch.arange(16.0)
    (q, k, v) = plugin._parts(layer, LayerMap(inputs=torch.zeros(4, 8, 8), scale=scale), 1, "k_proj")
    assert q is None and v is None and k is not None and k.scale is not None and k.inputs is not None
    assert k.scale.tolist() == scale[8:].tolist() and k.inputs.shape == (4, 8, 8)
    fused = torch.arange(64.0)
    parts = plugin._parts(layer, LayerMap(scale=fused), None, "qkv_proj")
    found = [part.scale.tolist() for part in parts if part is not None and part.scale is not None]
    assert found == [fused[16:32].tolist(), fused[40:48].tolist(), fused[56:64].tolist()]


def test_a_rank_that_cuts_the_inputs_has_their_blocks(plugin: ModuleType) -> None:
    blocks = torch.arange(4.0).view(4, 1, 1).expand(4, 8, 8)
    (part,) = plugin._parts(_row(plugin, 1, 2), LayerMap(inputs=blocks, scale=torch.zeros(24)), None, "o_proj")
    assert part is not None and part.inputs is not None and part.scale is not None
    assert part.inputs[:, 0, 0].tolist() == [2.0, 3.0] and len(part.scale) == 24


def test_outputs_of_which_a_rank_has_several_runs_are_refused(plugin: ModuleType) -> None:
    base = SimpleNamespace(input_size=32, output_size=48)
    sizes = {"n_slices": 1, "input_size": 32, "output_size": 24, "tp_rank": 1}
    layer = _sized(plugin, base_layer=base, is_merged_col_linear=True, **sizes)
    (part,) = plugin._parts(layer, LayerMap(inputs=torch.zeros(4, 8, 8)), None, "gate_up_proj")
    assert part is not None and part.inputs is not None and part.inputs.shape == (4, 8, 8)
    with pytest.raises(UnsupportedLayerError, match="layer 'gate_up_proj' cut by tensor-parallel rank"):
        plugin._parts(layer, LayerMap(scale=torch.zeros(48)), None, "gate_up_proj")
