"""Frozen image models in nf4, int8 and fp8: their bytes, and adapters that learn on them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from orthotune.errors import RecipeError
from orthotune.image.adapter.adapters import AdapterSettings, add_adapter, trained
from orthotune.image.adapter.saved_adapter import load_adapter, save_adapter
from orthotune.image.families.family import LossOptions
from orthotune.image.families.registry import family_of
from orthotune.image.loop.memory_estimate import measure_memory
from orthotune.image.loop.trainee import Trainee
from orthotune.quantized.in_place import IN_PLACE, check_word
from orthotune.recipes.subject_settings import SubjectSettings
from tests.support.transformer_pipelines import tiny_transformer_pipeline

HERE = [word for word, (module, _) in IN_PLACE.items() if find_spec(module)]
#: bytes beside those in bfloat16: half a byte and a byte of scale per 64; a byte, and 4 or 5 per row of 192 to 512
SIZES = {"nf4": 0.26, "int8": 0.51, "fp8": 0.51}


def wide() -> Any:
    """Z-Image whose layers are wide enough for blocks of 64."""
    from diffusers import ZImageTransformer2DModel

    pipeline = tiny_transformer_pipeline("z-image")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = dict(pipeline.transformer.config) | {"dim": 192, "n_heads": 2, "n_kv_heads": 2,
                                                      "axes_dims": [32, 32, 32]}  # fmt: skip
        transformer = ZImageTransformer2DModel.from_config(config)
        for name in ("x_pad_token", "cap_pad_token"):
            getattr(transformer, name).data.normal_(std=0.02)
    pipeline.register_modules(transformer=transformer)
    return pipeline.to(torch.bfloat16)


def held(part: nn.Module) -> int:
    """Bytes of the tensors of a network, those inside of a quantized one too."""
    total = 0
    for tensor in (*part.parameters(), *part.buffers()):
        names = (*getattr(tensor, "tensor_data_names", ()), *getattr(tensor, "optional_tensor_data_names", ()))
        inner = [value for name in names if isinstance(value := getattr(tensor, name), torch.Tensor)]
        total += sum(t.nbytes for t in inner) if inner else tensor.nbytes
        state = getattr(tensor, "quant_state", None)
        if state is not None:
            total += state.absmax.nbytes + (state.state2.absmax.nbytes if state.nested else 0)
    return total


@pytest.mark.parametrize("word", HERE)
def test_a_quantized_base_is_small_and_an_adapter_learns_on_it(word: str, tmp_path: Path) -> None:
    plain, family = family_of(wide()), family_of(wide())
    names = ("layers.", "noise_refiner.", "context_refiner.")
    weights = {n: p for n, p in plain.denoiser.named_parameters() if n.startswith(names) and p.ndim == 2}
    blocks = sum(p.nbytes for p in weights.values())
    count = family.quantize(word)
    assert count > 10 and family.dtype == torch.bfloat16
    saved = held(plain.denoiser) - held(family.denoiser)
    assert abs(saved / blocks - (1 - SIZES[word])) < 0.03
    torch.manual_seed(0)
    before = family.generate(["a red digit"], [1], steps=1, height=32, width=32)
    add_adapter(family, AdapterSettings(block_size=4))
    assert torch.equal(before, family.generate(["a red digit"], [1], steps=1, height=32, width=32))
    images = torch.randint(256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    latents = family.encode_images(images, torch.Generator().manual_seed(0))
    conditions, losses = family.encode_captions(["a", "sks"]), []
    optimizer = torch.optim.AdamW(trained(family).values(), lr=2e-2)
    for _ in range(5):
        loss = family.losses(family.denoiser, latents, conditions, torch.Generator().manual_seed(2), LossOptions())
        losses.append(loss.detach().mean().item())
        optimizer.zero_grad()
        loss.mean().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in trained(family).values())
        optimizer.step()
    assert losses[-1] < losses[0]
    after = family.generate(["a red digit"], [1], steps=1, height=32, width=32)
    save_adapter(family, tmp_path)
    again = family_of(wide())
    again.quantize(word)
    load_adapter(again, tmp_path)
    assert torch.equal(after, again.generate(["a red digit"], [1], steps=1, height=32, width=32))


@pytest.mark.parametrize("word", HERE)
def test_the_estimate_counts_the_bytes_that_are_held(word: str) -> None:
    family, quantized = family_of(wide()), family_of(wide())
    quantized.quantize(word)
    add_adapter(family, AdapterSettings(block_size=4))
    settings = SubjectSettings(
        model="m", instance_images="x", instance_prompt="a sks cat", resolution=32, rest_encoders=True,
        quantization=word,
    )  # fmt: skip
    found = measure_memory(family, Trainee(family), settings)
    assert found.frozen == found.components["transformer"] == held(quantized.denoiser)
    assert found.activations is not None


def test_what_is_not_there_is_refused_in_words() -> None:
    with pytest.raises(RecipeError, match=r"quantization=nf5 for an image model.*nf4, int8, fp8"):
        check_word("nf5")
    for word in set(IN_PLACE) - set(HERE):
        with pytest.raises(RecipeError, match=r"is not installed.*orthotune\[quant-"):
            check_word(word)
    with pytest.raises(ValueError, match="quantization"):
        SubjectSettings(model="m", instance_images="x", instance_prompt="a", quantization="nf4", method="full")
