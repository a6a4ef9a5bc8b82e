"""A base in a single file is the pipeline that was written into it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from orthotune.errors import RecipeError
from orthotune.formats.names.ldm import ldm_names
from orthotune.image.families.registry import open_family
from tests.support.image_models import weights

#: Names of a VAE in diffusers -> names in files of the LDM program, tried in order.
VAE = (
    (r"mid_block\.resnets\.0", "mid.block_1"), (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"), (r"mid_block\.attentions\.0\.to_out\.0",
    "mid.attn_1.proj_out"), (r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1"), ("conv_norm_out", "norm_out"),
    ("conv_shortcut", "nin_shortcut"), (r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2"),
    (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
)  # fmt: skip


def _vae_name(name: str, levels: int) -> str:
    for pattern, new in VAE:
        name = re.sub(pattern, new, name)

    def up(found: re.Match[str]) -> str:
        return f"up.{levels - 1 - int(found[1])}."

    name = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda found: f"{up(found)}block.{found[2]}", name)
    return re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda found: f"{up(found)}upsample", name)


def _whole_file(family: Any, path: Path) -> None:
    """All parts in one file, under the names of the LDM program."""
    pipe = family.pipeline
    ldm, tensors = ldm_names(weights(pipe.unet)), {}
    for name, tensor in pipe.unet.state_dict().items():
        module, _, leaf = name.rpartition(".")
        tensors[f"model.diffusion_model.{ldm[module]}.{leaf}"] = tensor
    for name, tensor in pipe.text_encoder.state_dict().items():
        tensors["cond_stage_model.transformer.text_model." + name.removeprefix("text_model.")] = tensor
    levels = len(pipe.vae.config.block_out_channels)
    for name, tensor in pipe.vae.state_dict().items():
        square = ".attn_1." in (own := _vae_name(name, levels)) and tensor.ndim == 2
        tensors[f"first_stage_model.{own}"] = tensor[..., None, None] if square else tensor
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, path)


def _same(one: Any, other: Any) -> bool:
    first, second = one.generate(["a red digit"], [3], steps=2), other.generate(["a red digit"], [3], steps=2)
    return bool((first.int() - second.int()).abs().max() == 0)


def test_a_file_with_all_parts_and_the_config_beside_it(tiny: Callable[..., Path], tmp_path: Path) -> None:
    family = open_family(tiny("sd15"))
    _whole_file(family, tmp_path / "base.safetensors")
    skipped = shutil.ignore_patterns("*.safetensors")
    shutil.copytree(tiny("sd15"), tmp_path / "base", ignore=skipped)
    found = open_family(tmp_path / "base.safetensors")
    assert _same(family, found) and found.pipeline.name_or_path == str(tmp_path / "base.safetensors")
    (tmp_path / "base").rename(tmp_path / "config")
    with pytest.raises(RecipeError, match="no model_index.json in .*base_config=FOLDER"):
        open_family(tmp_path / "base.safetensors")
    assert _same(family, open_family(tmp_path / "base.safetensors", config=tmp_path / "config"))


def test_a_denoiser_alone_takes_its_place_in_a_pipeline(tiny: Callable[..., Path], tmp_path: Path) -> None:
    family = open_family(tiny("sd15"))
    with torch.no_grad():
        for parameter in family.denoiser.parameters():
            parameter.mul_(1.25)
    save_file(family.denoiser.state_dict(), tmp_path / "tuned.safetensors")
    found = open_family(tmp_path / "tuned.safetensors", config=tiny("sd15"))
    assert _same(family, found) and not _same(found, open_family(tiny("sd15")))
    shutil.copytree(tiny("sd15"), tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(RecipeError, match="the denoiser alone, and no weights of vae and text_encoder"):
        open_family(tmp_path / "tuned.safetensors", config=tmp_path / "bare")


def test_pickles_and_configs_of_folders_are_refused(tiny: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "base.ckpt").write_bytes(b"x")
    with pytest.raises(RecipeError, match="a file that ends in .ckpt.*can run code"):
        open_family(tmp_path / "base.ckpt", config=tiny("sd15"))
    with pytest.raises(RecipeError, match="no single file"):
        open_family(tiny("sd15"), config=tiny("sd15"))
