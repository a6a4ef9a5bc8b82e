"""A new family of image models is a class and an entry of the registry, and keeps the contracts of all families.

The steps of docs/contributing/add-a-family.md, taken for a pipeline class that exists in this test alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import diffusers
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor, nn

from orthotune.errors import RecipeError
from orthotune.image.data.batch import Conditions
from orthotune.image.families import registry
from orthotune.image.families.flow_matching import FlowFamily, FlowTimes
from orthotune.image.families.registry import FAMILIES, open_family
from orthotune.recipes import subject
from orthotune.recipes.subject_settings import SubjectSettings
from orthotune.worlds.image_folders import write_subject
from tests.image import test_adapters, test_families, test_memory_estimate, test_registry, test_saved_adapter
from tests.support import tiny_pipelines


class ToyPipeline(StableDiffusion3Pipeline):
    """A pipeline of a class that no family knows."""


class Toy(FlowFamily):
    """The family of :class:`ToyPipeline`: joint attention, two CLIP encoders, all times equally likely."""

    name = "toy"
    pipeline_class = "ToyPipeline"
    denoiser_name = "transformer"
    text_encoder_names: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2")
    attention = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    entry = "pos_embed.proj"
    usual_guidance = 5.0

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        self.times = FlowTimes.of(pipeline.scheduler, logit_normal=False)

    @property
    def divisor(self) -> int:
        return self.pixels_per_latent * int(self.pipeline.transformer.config.patch_size)

    @property
    def native_size(self) -> int:
        return int(self.pipeline.transformer.config.sample_size) * self.pixels_per_latent

    def _encode(self, captions: list[str]) -> Conditions:
        words, _, pooled, _ = self.pipeline.encode_prompt(
            captions, None, None, device=self.device, do_classifier_free_guidance=False
        )
        return {"encoder_hidden_states": words, "pooled_projections": pooled}

    def velocity(self, denoiser: nn.Module, noisy: Tensor, times: Tensor, conditions: Conditions) -> Tensor:
        given = {name: tensor.to(noisy.device, self.dtype) for name, tensor in conditions.items()}
        seen = noisy.to(self.dtype)
        found: Tensor = denoiser(hidden_states=seen, timestep=1000 * times, **given, return_dict=False)[0]
        return found

    def idle_modules(self, component: str) -> tuple[str, ...]:
        return ("transformer_blocks.1.attn.add_q_proj",) if component == "transformer" else ()


def _tiny(scheduler: dict[str, Any]) -> ToyPipeline:
    """The entry of tests/support/tiny_pipelines.py."""
    return ToyPipeline(**tiny_pipelines._sd3(scheduler, t5=False).components)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diffusers, "ToyPipeline", ToyPipeline, raising=False)
    monkeypatch.setattr(registry, "FAMILIES", (*FAMILIES, Toy))
    monkeypatch.setitem(tiny_pipelines._MAKERS, "toy", _tiny)
    monkeypatch.setitem(tiny_pipelines.NAMES, "toy", "toy")
    for facts in (tiny_pipelines.LATENTS, tiny_pipelines.IDLE):
        monkeypatch.setitem(facts, "toy", facts["sd3"])


def _contracts() -> Iterator[tuple[Callable[..., None], dict[str, Any]]]:
    """The contracts of tests/image that run over every family or pipeline, with what one of them is run with."""
    for module in (test_families, test_adapters, test_memory_estimate, test_registry, test_saved_adapter):
        for name, contract in vars(module).items():
            marks = [mark.args for mark in getattr(contract, "pytestmark", ()) if mark.name == "parametrize"]
            given: dict[str, Any] = {}
            for names, values, *_ in marks:
                names, first = [names] if isinstance(names, str) else names, next(iter(values))
                given |= dict(zip(names, [first] if len(names) == 1 else first, strict=True))
            if name.startswith("test_") and "kind" in given and "gpu" not in name:
                yield contract, given | {"kind": "toy"}


CONTRACTS = list(_contracts())


@pytest.mark.parametrize(("contract", "given"), CONTRACTS, ids=lambda part: getattr(part, "__name__", ""))
@pytest.mark.usefixtures("toy")
def test_a_new_family_keeps_the_contract(
    contract: Callable[..., None], given: dict[str, Any], tiny: Callable[..., Path], tmp_path: Path
) -> None:
    fixtures = {"tiny": tiny, "tmp_path": tmp_path}
    contract(**given, **{name: fixtures[name] for name in inspect.signature(contract).parameters if name in fixtures})


def test_the_contracts_are_found() -> None:
    assert len(CONTRACTS) > 12


@pytest.mark.usefixtures("toy")
def test_a_new_family_is_trained_by_a_recipe(tiny: Callable[..., Path], tmp_path: Path) -> None:
    write_subject(tmp_path / "images")
    settings = SubjectSettings(
        model=str(tiny("toy")), instance_images=str(tmp_path / "images"), instance_prompt="a sks digit", steps=2,
        batch_size=1, block_size=4, sample_steps=1, output=tmp_path / "run",
    )  # fmt: skip
    record = subject.run(settings, say=lambda _: None, bar=False)
    assert record.steps == 2 and (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()


def test_without_the_entry_it_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(tiny_pipelines._MAKERS, "toy", _tiny)
    with pytest.raises(RecipeError, match="a ToyPipeline, which is not a supported family"), torch.no_grad():
        open_family(tiny_pipelines.save_tiny("toy", tmp_path))
