"""GPTQ layers of gptqmodel."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import GPTQConfig

from orthotune.errors import MergeError
from orthotune.quantized.registry import library_of
from tests.quantized.gptqmodel_layers import TorchLinear, finetune_loaded, gptq, load, packed
from tests.quantized.layer_checks import Subject, check_llama, error, quantize_layers, tokens

FITTED = "codes that were fitted to calibration data"
#: The torch kernels multiply in the input's dtype; others, and packed ones, in bfloat16.
F32, B16 = 1e-6, 8e-3
SUBJECTS = [
    Subject("torch-4", gptq, "4 bit, groups of 32, TorchLinear", product=F32, merges=FITTED),
    Subject("torch-8", partial(gptq, bits=8), "8 bit, groups of 32, TorchLinear", 8, product=F32, merges=FITTED),
    Subject("torch-2-group-16", partial(gptq, bits=2, group=16), "2 bit, groups of 16", 2, product=F32, merges=FITTED),
    Subject("torch-bfloat16", gptq, "4 bit, groups of 32", dtype=torch.bfloat16, product=B16, merges=FITTED),
    Subject("torch-shuffled", partial(gptq, shuffle=True), "4 bit, groups of 32", product=F32, merges=FITTED),
    Subject("aten-4", partial(gptq, kernel="aten"), "4 bit, groups of 32, TorchAtenLinear", product=F32, merges=FITTED),
    # Packed before the adapter came: the scales are bfloat16 from then on.
    Subject("aten-packed", lambda linear: packed(gptq(linear, "aten")), "TorchAtenLinear", product=B16, merges=FITTED),
    # A kernel that is read through the identity. Packed, it takes every zero point for the middle one.
    Subject("fused", partial(gptq, kernel="fused", sym=True), "TorchFusedLinear", product=B16, merges=FITTED),
]


@pytest.mark.parametrize("kernel", ["torch", "aten"])
def test_llama(kernel: str, tmp_path: Path) -> None:
    # Two layers of seven products in float16, of which the torch kernels of AWQ round the input too.
    check_llama(lambda m: quantize_layers(m, partial(gptq, kernel=kernel)), torch.float32, 1e-2, tmp_path)


@pytest.mark.parametrize("choice", [{}, {"backend": "gptq_torch"}], ids=["chosen", "torch"])
def test_a_loaded_checkpoint_learns_and_merges_into_plain_layers(
    choice: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Compiling the dequantization takes half a minute and gives the same numbers.
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    config = GPTQConfig(bits=4, group_size=32, desc_act=False, sym=False, checkpoint_format="gptq_v2", **choice)
    model = finetune_loaded(load(gptq, config, tmp_path), "TorchLinear" if choice else "TorchAtenLinear")
    with pytest.raises(MergeError, match="Cannot merge OFT layers when the model is gptq quantized.*dequantize=True"):
        model.merge_and_unload()
    with torch.no_grad():
        y = model(tokens()).logits
        plain = model.merge_and_unload(dequantize=True)
        # Two layers of seven products in float16.
        assert plain.dtype == torch.float16 and error(plain(tokens()).logits, y) < 1e-2
    # Nothing says that it is quantized, so it can be saved and loaded as a plain model.
    assert getattr(plain.config, "quantization_config", None) is None
    plain.save_pretrained(tmp_path / "plain")
    again = type(plain).from_pretrained(tmp_path / "plain", dtype=torch.float16)
    with torch.no_grad():
        assert torch.equal(again(tokens()).logits, plain(tokens()).logits)


def test_quantized_embeddings_are_not_taken_for_a_linear_layer() -> None:
    from gptqmodel.nn_modules.qlinear.torch import TorchQuantEmbeddings

    made = TorchQuantEmbeddings(
        bits=4, group_size=32, sym=True, desc_act=False, in_features=64, out_features=96, bias=False
    )
    assert isinstance(made, TorchLinear) and library_of(made) is None
