"""Opening models, and what is said of those that cannot be."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from orthotune.errors import RecipeError
from orthotune.image.families.registry import FAMILIES, family_of, open_family
from orthotune.worlds.image import PIPELINE
from tests.support.tiny_pipelines import KINDS, NAMES, known_of


@pytest.mark.parametrize("kind", KINDS)
def test_every_family_is_known_by_its_folder(tiny, kind):
    family = open_family(tiny(kind))
    assert family.name == known_of(kind, NAMES)
    assert not any(p.requires_grad or m.training for m in family.modules().values() for p in m.parameters())
    assert family.native_size == (256 if kind.startswith("flux") else 16)
    assert family.pixels_per_latent == 2 and family.native_size % family.divisor == 0
    assert family.denoiser.get_submodule(family.entry) is not None


def test_the_image_world_is_stable_diffusion():
    family = open_family(PIPELINE)
    assert (family.name, family.native_size, family.pixels_per_latent) == ("stable-diffusion", 32, 4)
    assert {p.dtype for m in family.modules().values() for p in m.parameters()} == {torch.float32}


def test_parts_that_may_be_missing(tiny, tmp_path):
    folder = tmp_path / "sd3"
    shutil.copytree(tiny("sd3"), folder)
    shutil.rmtree(folder / "text_encoder_3")
    shutil.rmtree(folder / "tokenizer_3")
    family = open_family(folder)
    assert list(family.text_encoders) == ["text_encoder", "text_encoder_2"]
    other = open_family(tiny("sd3-without-t5"))
    options = {"steps": 1, "height": 16, "width": 16}
    assert torch.equal(family.generate(["a"], [1], **options), other.generate(["a"], [1], **options))


def _broken(tiny, tmp_path, change):
    folder = tmp_path / "model"
    shutil.copytree(tiny("sd15"), folder)
    change(folder)
    return folder


def test_an_unknown_family_is_told_what_is_supported(tiny, tmp_path):
    def rename(folder):
        index = json.loads((folder / "model_index.json").read_text())
        (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "PixArtAlphaPipeline"}))

    with pytest.raises(RecipeError) as caught:
        open_family(_broken(tiny, tmp_path, rename))
    assert "PixArtAlphaPipeline" in str(caught.value)
    assert all(kind.name in str(caught.value) for kind in FAMILIES)
    with pytest.raises(RecipeError, match="not a supported family"):
        family_of(torch.nn.Identity())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / "model_index.json").write_text("{"), "line 1: not JSON"),
        (lambda folder: (folder / "model_index.json").unlink(), "without model_index.json"),
        (lambda folder: shutil.rmtree(folder / "vae"), "complete StableDiffusionPipeline"),
        (lambda folder: next((folder / "unet").glob("*.safetensors")).write_bytes(b"cut"), "download it again"),
    ],
)  # fmt: skip
def test_a_damaged_folder_is_named(tiny, tmp_path, change, said):
    folder = _broken(tiny, tmp_path, change)
    with pytest.raises(RecipeError, match=said) as caught:
        open_family(folder)
    assert str(folder) in str(caught.value)


def test_names_that_lead_nowhere(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(RecipeError, match="no such directory.*Check the path"):
        open_family("./not-here")
    with pytest.raises(RecipeError, match="Check the name and the network"):
        open_family("nobody/has-this-model")
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(RecipeError, match="from_single_file"):
        open_family(tmp_path / "model.safetensors")


def test_models_that_read_a_second_picture_are_refused(tiny):
    pipeline = open_family(tiny("sd15")).pipeline
    pipeline.unet.register_to_config(in_channels=9)
    with pytest.raises(RecipeError, match="inpainting"):
        family_of(pipeline)
    pipeline.unet.register_to_config(in_channels=4, time_cond_proj_dim=8)
    with pytest.raises(RecipeError, match="time_cond_proj_dim"):
        family_of(pipeline)
