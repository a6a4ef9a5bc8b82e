"""Stable Diffusion on disk, tiny: the folder of a pipeline, and the same numbers in one LDM file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from orthotune.formats.names.ldm import ldm_names
from tests.support.image_models import pipeline, weights


def save_pipeline(folder: Path, **options: Any) -> Any:
    """A pipeline and its folder."""
    pipe = pipeline()
    pipe.save_pretrained(folder, **options)
    return pipe


def load_pipeline(folder: Path) -> Any:
    """The pipeline in a folder; it has no tokenizer."""
    from diffusers import StableDiffusionPipeline

    left_out = ("tokenizer", "safety_checker", "feature_extractor", "image_encoder")
    return StableDiffusionPipeline.from_pretrained(folder, **dict.fromkeys(left_out))


def save_single_file(pipe: Any, path: Path) -> dict[str, str]:
    """All of a pipeline's numbers in one file as LDM names them; tensor of the file -> component and parameter."""
    ldm, tensors, meant = ldm_names(weights(pipe.unet)), {}, {}
    for name, tensor in pipe.unet.state_dict().items():
        module, _, leaf = name.rpartition(".")
        there = f"model.diffusion_model.{ldm[module]}.{leaf}"
        tensors[there], meant[there] = tensor.clone(), f"unet.{name}"
    for name, tensor in pipe.text_encoder.state_dict().items():
        there = "cond_stage_model.transformer.text_model." + name.removeprefix("text_model.")
        tensors[there], meant[there] = tensor.clone(), f"text_encoder.{name}"
    for name, tensor in pipe.vae.state_dict().items():
        tensors[f"first_stage_model.{name}"], meant[f"first_stage_model.{name}"] = tensor.clone(), f"vae.{name}"
    save_file(tensors, path, {"modelspec.architecture": "stable-diffusion-v1"})
    return meant


ATTENTION = "transformer_blocks.0.attn1.to_q"
#: layers of an adapter in three spellings -> component and module
STYLE = {
    "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q": ("unet", f"down_blocks.0.attentions.0.{ATTENTION}"),
    "lora_unet_down_blocks_1_resnets_0_conv1": ("unet", "down_blocks.1.resnets.0.conv1"),
    "lora_te_text_model_encoder_layers_1_mlp_fc1": ("text_encoder", "encoder.layers.1.mlp.fc1"),
}
