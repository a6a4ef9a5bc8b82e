"""Intel Neural Compressor's weight-only layers."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.quantized.inc import RTNConfig, convert, prepare
from tests.quantized.layer_checks import Subject, check_llama, parts, quantize_layers


def rtn(linear: nn.Linear, bits: int = 4, **options: Any) -> nn.Module:
    """Rounded to nearest, by the library."""
    config = RTNConfig(bits=bits, **{"group_size": 32, **options})
    return convert(prepare(nn.Sequential(linear), config))[0].eval()


#: The layer multiplies in float32 with the float32 copy that it keeps.
F32 = 1e-6
SUBJECTS = [
    Subject("int-4", rtn, "4 bit int, groups of 32", product=F32),
    Subject("int-4-asymmetric", partial(rtn, use_sym=False), "4 bit int, groups of 32", product=F32),
    Subject("int-8", partial(rtn, bits=8), "8 bit int, groups of 32", 8, product=F32),
    Subject("int-3-row", partial(rtn, bits=3, group_size=-1), "3 bit int, groups of 64", 3, product=F32),
    Subject("nf4", partial(rtn, dtype="nf4"), "4 bit nf4", product=F32, merges="codes of the table nf4"),
]


def test_a_merge_before_any_forward_is_seen_by_the_first_one() -> None:
    """The layer keeps its dequantized weight from its first forward on, which a merge must replace."""
    early, late = SUBJECTS[0].model().eval(), SUBJECTS[0].model().eval()
    x = SUBJECTS[0].x()
    with torch.no_grad():
        late(x)
        assert "weight" in vars(parts(late)[0]) and "weight" not in vars(parts(early)[0])
        early.merge_adapter()
        late.merge_adapter()
        assert torch.equal(early(x), late(x))
        early.unmerge_adapter()
        late.unmerge_adapter()
        assert torch.equal(early(x), late(x))


def test_reordered_groups_are_not_merged() -> None:
    layer, library = parts(SUBJECTS[0].model())
    layer.g_idx = torch.arange(64, dtype=torch.int32) % 2
    assert library.cannot_merge(layer) == "groups of inputs that were reordered by calibration data"


def test_llama(tmp_path: Path) -> None:
    # Two layers of seven products in float32.
    check_llama(lambda model: quantize_layers(model, rtn), torch.float32, 1e-5, tmp_path)
