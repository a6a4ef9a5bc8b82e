"""The registry of families of image models, and the function that opens a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from orthotune.errors import RecipeError
from orthotune.files.json_file import read_json
from orthotune.image.families.chroma import Chroma
from orthotune.image.families.flux import Flux
from orthotune.image.families.flux2 import Flux2, Flux2Klein
from orthotune.image.families.flux_editing import FluxFill, FluxKontext
from orthotune.image.families.hidream import HiDream
from orthotune.image.families.hunyuan_video import HunyuanVideo
from orthotune.image.families.hunyuan_video15 import HunyuanVideo15
from orthotune.image.families.ideogram4 import Ideogram4
from orthotune.image.families.inpainting import StableDiffusionInpainting, StableDiffusionXLInpainting
from orthotune.image.families.krea2 import Krea2
from orthotune.image.families.ltx2 import LTX2
from orthotune.image.families.ltx_video import LTXVideo
from orthotune.image.families.pipeline_family import PipelineFamily
from orthotune.image.families.plain_transformers import AuraFlow, Lumina2, Sana
from orthotune.image.families.qwen_image import QwenImage
from orthotune.image.families.qwen_image_edit import QwenImageEdit, QwenImageEditPlus
from orthotune.image.families.sd3 import StableDiffusion3
from orthotune.image.families.sdxl import StableDiffusionXL
from orthotune.image.families.single_file import config_of, load_single_file
from orthotune.image.families.stable_diffusion import StableDiffusion
from orthotune.image.families.unknown_transformer import unknown_family
from orthotune.image.families.wan import Wan
from orthotune.image.families.z_image import ZImage
from orthotune.image.loop.quiet_loading import quiet_loading

#: One line per family.
FAMILIES: tuple[type[PipelineFamily], ...] = (
    StableDiffusion, StableDiffusionXL, StableDiffusion3, Flux, Flux2Klein, Flux2, ZImage, QwenImage, Chroma, Wan,
    HunyuanVideo, Lumina2, AuraFlow, Sana, FluxKontext, FluxFill, QwenImageEdit, QwenImageEditPlus,
    StableDiffusionInpainting, StableDiffusionXLInpainting, Krea2, LTXVideo, LTX2, HiDream, HunyuanVideo15, Ideogram4,
)  # fmt: skip

_INDEX = "model_index.json"
#: parts that a pipeline can run without, and that users delete to save disk space: T5 of SD3, the safety checker
_OPTIONAL = ("text_encoder_3", "tokenizer_3", "safety_checker", "feature_extractor", "image_encoder")


def open_family(
    model: str | Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu",
    config: str | Path | None = None,
) -> PipelineFamily:  # fmt: skip
    """Load a pipeline, with frozen weights.

    Args:
        model: a folder of ``save_pretrained`` of diffusers, a hub name, or a single ``.safetensors`` file.
        dtype: of the weights. The VAE stays float32 if its config says that it overflows in half precision.
        device: where the networks go.
        config: of a single file, the folder with ``model_index.json`` and the configs of the parts; None looks for a
            folder of the file's name beside it.

    Raises:
        RecipeError: there is no such model, no config of a single file, or its family is not supported.

    Example:
        >>> from orthotune.worlds.image import PIPELINE
        >>> family = open_family(PIPELINE)
        >>> family.name, family.native_size, family.pixels_per_latent
        ('stable-diffusion', 32, 4)
    """
    import diffusers
    from safetensors import SafetensorError

    path = Path(model).expanduser()
    kind, index, folder = _kind(model, config)
    loader: Any = getattr(diffusers, kind.pipeline_class)
    try:
        with quiet_loading():
            options = {"torch_dtype": dtype, **_without(kind, index, folder)}
            if path.is_file():
                pipeline = load_single_file(loader, path, folder, index, **options)
                pipeline.register_to_config(_name_or_path=str(path))  # what an adapter records as its base
            else:
                pipeline = loader.from_pretrained(str(path) if path.is_dir() else str(model), **options)
    except (OSError, ValueError, TypeError, AttributeError, SafetensorError) as fault:
        raise RecipeError(
            f"model={model}", got=_first_line(fault), needed=f"a complete {kind.pipeline_class}",
            do="Copy or download it again",
        ) from fault  # fmt: skip
    if dtype == torch.float16 and getattr(pipeline.vae.config, "force_upcast", False):
        pipeline.vae.to(torch.float32)
    return kind(pipeline.to(device))


def reads_of(model: str | Path, config: str | Path | None = None) -> str:
    """What a model reads besides captions, see :class:`~orthotune.image.families.family.Family`; no weights are read.

    Args:
        model: as for :func:`open_family`.
        config: as for :func:`open_family`.

    Raises:
        RecipeError: there is no such model, no config of a single file, or its family is not supported.

    Example:
        >>> from orthotune.worlds.image import PIPELINE
        >>> reads_of(PIPELINE)
        ''
    """
    return _kind(model, config)[0].reads


def _kind(model: str | Path, config: str | Path | None) -> tuple[type[PipelineFamily], dict[str, Any], Path]:
    """The family of a model, its ``model_index.json``, and the folder of that."""
    path = Path(model).expanduser()
    if config is not None and not path.is_file():
        raise RecipeError(f"base_config={config}", got=f"model={model}, no single file", do="Leave base_config out")
    folder = config_of(path, None if config is None else Path(config)) if path.is_file() else path
    index = _index(str(folder) if path.is_file() else str(model))
    parts = {name: value[-1] for name, value in index.items() if isinstance(value, list) and value}
    return _named(str(index.get("_class_name")), f"model={model}", parts), index, folder


def family_of(pipeline: Any) -> PipelineFamily:
    """The family of a loaded diffusers pipeline; its weights are frozen.

    Raises:
        RecipeError: the family is not supported.
    """
    parts = {name: type(part).__name__ for name, part in getattr(pipeline, "components", {}).items()}
    return _named(type(pipeline).__name__, "the pipeline", parts)(pipeline)


def _without(kind: type[PipelineFamily], index: dict[str, Any], path: Path) -> dict[str, Any]:
    """Arguments that make diffusers skip missing optional parts, which it otherwise refuses."""
    # The safety checker is not needed: it checks generated images before they are shown to users.
    checked = kind in (StableDiffusion, StableDiffusionInpainting)
    absent = {"safety_checker"} if checked else set()
    absent |= {name for name, value in index.items() if value == [None, None]}
    absent |= {name for name in _OPTIONAL if name in index and path.is_dir() and not (path / name).is_dir()}
    arguments: dict[str, Any] = dict.fromkeys(absent)
    return arguments | ({"requires_safety_checker": False} if checked else {})


def _index(model: str) -> dict[str, Any]:
    """The content of ``model_index.json``."""
    path = Path(model).expanduser()
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

    # A hub name has exactly one slash. For a path, the error of the hub would be misleading.
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


def supported() -> str:
    """The families and the classes of their pipelines, as text.

    Example:
        >>> supported().partition(",")[0]
        'stable-diffusion (StableDiffusionPipeline)'
    """
    return ", ".join(f"{kind.name} ({kind.pipeline_class})" for kind in FAMILIES)


def _named(pipeline_class: str, given: str, parts: dict[str, Any]) -> type[PipelineFamily]:
    import diffusers

    for kind in FAMILIES:
        if kind.pipeline_class == pipeline_class:
            return kind
    unknown = unknown_family(pipeline_class, parts) if hasattr(diffusers, pipeline_class) else None
    if unknown is None:
        raise RecipeError(
            given, got=f"a {pipeline_class}, which is not a supported family", needed=f"one of {supported()}"
        )
    return unknown


def _first_line(fault: Exception) -> str:
    return (str(fault).strip().splitlines() or [type(fault).__name__])[0]
