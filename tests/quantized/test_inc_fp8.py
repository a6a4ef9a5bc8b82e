"""Intel Neural Compressor's fp8 layers, in the mode that a CPU runs too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from tests.quantized.inc import FP8Config, convert, prepare
from tests.quantized.layer_checks import Subject, check_llama, error, parts, tokens


def convert_all(model: Any, run: Callable[[Any], Any]) -> Any:
    """``model`` in fp8, with the ranges of the activations that ``run`` gives."""
    with TemporaryDirectory() as folder:
        config = FP8Config(
            fp8_config="E4M3",
            use_qdq=True,
            scale_format="SCALAR",
            scale_method="maxabs_arbitrary",  # the default asks for the scales of a device
            dump_stats_path=f"{folder}/stats",
            blocklist={"names": ["lm_head"], "types": []},
        )
        model = prepare(model, config)
        with torch.no_grad():
            run(model)
        return convert(model)


def fp8(linear: nn.Linear) -> nn.Module:
    x = torch.randn(256, linear.in_features, generator=torch.Generator().manual_seed(1)).bfloat16()
    return convert_all(nn.Sequential(linear.bfloat16()), lambda model: model(x))[0]


SUBJECTS = [
    # Three bits after the leading one: each number is off by a sixteenth at most, by a 27th on the average, in the
    # weight as in the input; for a weight of normal numbers that is about what six even bits give.
    Subject("e4m3", fp8, "float8_e4m3fn", 6, torch.bfloat16, product=4e-2),
]


def test_the_merged_scale_follows_the_weight() -> None:
    layer, library = parts(SUBJECTS[0].model())
    scale, weight = layer.dequant_weights.scale, library.dequantize(layer)
    library.requantize(layer, 100 * weight)
    # With the old scale every number would be cut off at 448 of it.
    assert error(library.dequantize(layer), 100 * weight) < 4e-2
    assert 40 < layer.dequant_weights.scale / scale < 110  # the library's own leaves half of the range unused


def test_scales_of_rows_are_not_merged() -> None:
    layer, library = parts(SUBJECTS[0].model())
    layer.dequant_weights.scale = torch.ones(96)
    assert library.cannot_merge(layer) == "scales that are not one for the entire weight"


def test_a_layer_for_another_product_is_not_claimed() -> None:
    layer, library = parts(SUBJECTS[0].model())
    del layer.dequant_weights
    assert not library.claims(layer)


def test_llama(tmp_path: Path) -> None:
    # The activations of a plain layer are not rounded to fp8; two layers of seven products each.
    check_llama(lambda m: convert_all(m, lambda model: model(tokens())), torch.bfloat16, 0.2, tmp_path)
