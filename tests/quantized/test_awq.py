"""AWQ layers of gptqmodel."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AwqConfig

from orthotune.quantized.registry import library_of
from tests.quantized.gptqmodel_layers import AwqTorchLinear, awq, finetune_loaded, load, packed
from tests.quantized.layer_checks import Subject, check_llama, error, quantize_layers, tokens

#: The torch kernel rounds the input, the product and the output to float16 when the input is float32; the CPU's kernel
#: multiplies in the input's dtype, until it is packed.
F32, F16, B16 = 1e-6, 1e-3, 8e-3
SUBJECTS = [
    Subject("torch-4", awq, "4 bit, groups of 32, AwqTorchLinear", product=F16),
    Subject("torch-8", partial(awq, bits=8), "8 bit, groups of 32, AwqTorchLinear", 8, product=F16),
    Subject("torch-3-group-16", partial(awq, bits=3, group=16), "3 bit, groups of 16", 3, product=F16),
    Subject("torch-bfloat16", awq, "4 bit, groups of 32", dtype=torch.bfloat16, product=B16),
    Subject("aten-4", partial(awq, kernel="aten"), "4 bit, groups of 32, TorchAtenAwqLinear", product=F32),
    # Packed before the adapter came: the scales are bfloat16 from then on.
    Subject("aten-packed", lambda linear: packed(awq(linear, "aten")), "TorchAtenAwqLinear", product=B16),
    # A kernel that is read through the identity.
    Subject(
        "fused", partial(awq, kernel="fused"), "TorchFusedAwqLinear", product=B16, merges="with its own order of codes"
    ),
]


@pytest.mark.parametrize("kernel", ["torch", "aten"])
def test_llama(kernel: str, tmp_path: Path) -> None:
    # Two layers of seven products in float16, of which the torch kernels of AWQ round the input too.
    check_llama(lambda m: quantize_layers(m, partial(awq, kernel=kernel)), torch.float32, 1e-2, tmp_path)


def test_a_loaded_checkpoint_learns_and_merges(tmp_path: Path) -> None:
    config = AwqConfig(bits=4, group_size=32)
    model = finetune_loaded(load(awq, config, tmp_path), "TorchAtenAwqLinear")
    with torch.no_grad():
        y = model(tokens()).logits
        model.merge_adapter()
        # Three of seven projections in each of two layers are quantized anew, to four bits.
        merged = error(model(tokens()).logits, y)
        assert 0 < merged < 0.3
        model.unmerge_adapter()
        assert torch.equal(model(tokens()).logits, y)
        # The merged model is an AWQ checkpoint again.
        unloaded = model.merge_and_unload()
        unloaded.save_pretrained(tmp_path / "merged")
        again = type(unloaded).from_pretrained(tmp_path / "merged", dtype=torch.float16)
        assert error(again(tokens()).logits, y) < 1.1 * merged + 2e-2


def test_a_kernel_that_inherits_is_read_through_the_identity_and_not_merged() -> None:
    class Turning(AwqTorchLinear):
        """As ParoQuant's: it does something to the input first."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.flip(-1))

    linear = SUBJECTS[0].linear()
    layer = awq(linear)
    layer.__class__ = Turning
    library = library_of(layer)
    assert library is not None and "Turning" in str(library.cannot_merge(layer))
    assert torch.equal(library.dequantize(layer), library.dequantize(awq(linear)).flip(-1))
