"""The families of image models that can be trained, and opening a model of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from orthotune.errors import RecipeError
from orthotune.files.json_file import read_json
from orthotune.image.families.flux import Flux
from orthotune.image.families.pipeline_family import PipelineFamily
from orthotune.image.families.sd3 import StableDiffusion3
from orthotune.image.families.sdxl import StableDiffusionXL
from orthotune.image.families.stable_diffusion import StableDiffusion
from orthotune.image.loop.quiet_loading import quiet_loading

#: One line per family.
FAMILIES: tuple[type[PipelineFamily], ...] = (StableDiffusion, StableDiffusionXL, StableDiffusion3, Flux)

_INDEX = "model_index.json"
#: parts that a pipeline runs without, and that people delete to save disk: T5 of SD3, the safety checker
_OPTIONAL = ("text_encoder_3", "tokenizer_3", "safety_checker", "feature_extractor", "image_encoder")


def open_family(
    model: str | Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> PipelineFamily:
    """The pipeline at ``model``, frozen and ready to train or draw.

    Args:
        model: a folder as diffusers' ``save_pretrained`` writes it, or a hub name.
        dtype: of the weights. The VAE stays float32 where its config says that half precision overflows in it.
        device: where the networks go.

    Raises:
        RecipeError: no such model, or one of a family that is not supported.

    Example:
        >>> from orthotune.worlds.image import PIPELINE
        >>> family = open_family(PIPELINE)
        >>> family.name, family.native_size, family.pixels_per_latent
        ('stable-diffusion', 32, 4)
    """
    import diffusers
    from safetensors import SafetensorError

    index = _index(str(model))
    kind = _named(str(index.get("_class_name")), f"model={model}")
    path = Path(model).expanduser()
    loader: Any = getattr(diffusers, kind.pipeline_class)
    try:
        with quiet_loading():
            pipeline = loader.from_pretrained(
                str(path) if path.is_dir() else str(model), torch_dtype=dtype, **_without(kind, index, path)
            )
    except (OSError, ValueError, TypeError, AttributeError, SafetensorError) as fault:
        raise RecipeError(
            f"model={model}", got=_first_line(fault), needed=f"a whole {kind.pipeline_class}",
            do="Copy or download it again",
        ) from fault  # fmt: skip
    if dtype == torch.float16 and getattr(pipeline.vae.config, "force_upcast", False):
        pipeline.vae.to(torch.float32)
    return kind(pipeline.to(device))


def family_of(pipeline: Any) -> PipelineFamily:
    """The family of a diffusers pipeline that is loaded already; its weights are frozen.

    Raises:
        RecipeError: the family is not supported.
    """
    return _named(type(pipeline).__name__, "the pipeline")(pipeline)


def _without(kind: type[PipelineFamily], index: dict[str, Any], path: Path) -> dict[str, Any]:
    """What diffusers is told to do without: it refuses a folder that lacks an optional part, unless that is said."""
    # A safety checker would only cost memory: it looks at finished images, and none is shown while training.
    skipped_message = {"safety_checker"} if kind is StableDiffusion else set()
    skipped_message |= {name for name, value in index.items() if value == [None, None]}
    skipped_message |= {name for name in _OPTIONAL if name in index and path.is_dir() and not (path / name).is_dir()}
    said: dict[str, Any] = dict.fromkeys(skipped_message)
    return said | ({"requires_safety_checker": False} if kind is StableDiffusion else {})


def _index(model: str) -> dict[str, Any]:
    """What ``model_index.json`` says."""
    path = Path(model).expanduser()
    if path.is_file():
        raise RecipeError(
            f"model={model}", got="a file", needed=f"a folder with {_INDEX}, as diffusers' save_pretrained writes it",
            do="Load it with diffusers' from_single_file and save it as a folder once",
        )  # fmt: skip
    if path.is_dir():
        if not (path / _INDEX).is_file():
            raise RecipeError(
                f"model={model}", got=f"a folder without {_INDEX}", needed="a diffusers pipeline",
                do="Name the folder that holds unet or transformer, vae and scheduler",
            )  # fmt: skip
        return read_json(path / _INDEX, error=RecipeError, do="Copy or download it again")
    return _from_hub(model)


def _from_hub(model: str) -> dict[str, Any]:
    import diffusers

    # No name on the hub looks like a path; asking the hub would end in a riddle.
    if model.startswith((".", "/", "~")) or model.count("/") != 1 or "\\" in model:
        raise RecipeError(f"model={model}", got="no such directory", needed="a diffusers pipeline", do="Check the path")
    try:
        index: dict[str, Any] = diffusers.DiffusionPipeline.load_config(model)
    except (OSError, ValueError) as fault:
        raise RecipeError(
            f"model={model}", got="no such directory, and the hub does not give it",
            needed="a directory as written by save_pretrained, or a hub name", do="Check the name and the network",
        ) from fault  # fmt: skip
    return index


def _named(pipeline_class: str, said: str) -> type[PipelineFamily]:
    for kind in FAMILIES:
        if kind.pipeline_class == pipeline_class:
            return kind
    known = ", ".join(f"{kind.name} ({kind.pipeline_class})" for kind in FAMILIES)
    raise RecipeError(said, got=f"a {pipeline_class}, which is no supported family", needed=f"one of {known}")


def _first_line(fault: Exception) -> str:
    return (str(fault).strip().splitlines() or [type(fault).__name__])[0]
