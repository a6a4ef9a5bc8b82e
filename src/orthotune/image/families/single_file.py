"""Pipelines whose weights are in one file, as sites for models give them: the config comes from a folder.

A file with all parts (U-Net, VAE and text encoders) needs of the folder the configs and tokenizers alone. A file with
nothing but the denoiser, as of FLUX and later models, is put in the place of that of a complete pipeline.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from orthotune.errors import RecipeError
from orthotune.files.safetensors_header import check_header

INDEX = "model_index.json"
SUFFIX = ".safetensors"
#: Starts of the names of a VAE or a text encoder in files with all parts.
OTHER_PARTS = ("first_stage_model.", "cond_stage_model.", "conditioner.")
#: Classes of the denoiser in a pipeline.
DENOISERS = ("unet", "transformer")


def config_of(file: Path, config: Path | None) -> Path:
    """The folder with the config of a single file.

    Args:
        file: the weights.
        config: as it was given; None looks for a folder of the file's name beside it: ``sdxl/`` for
            ``sdxl.safetensors``.

    Raises:
        RecipeError: another kind of file, or no such folder; diffusers would fetch the config from the hub, which is
            not done unasked.

    Example:
        >>> config_of(Path("models/sdxl.safetensors"), Path("configs/sdxl"))  # doctest: +SKIP
        PosixPath('configs/sdxl')
    """
    if file.suffix != SUFFIX:
        raise RecipeError(
            f"model={file}", got=f"a file that ends in {file.suffix or 'nothing'}", needed=f"a {SUFFIX} file",
            do="Pickled checkpoints can run code when they are read: convert the file where you trust it",
        )  # fmt: skip
    folder = (config or file.with_suffix("")).expanduser()
    if not (folder / INDEX).is_file():
        raise RecipeError(
            f"model={file}", got=f"no {INDEX} in {folder}",
            needed="the config of the file's model: model_index.json, the config.json of each part, scheduler and "
            "tokenizers, a few MB without weights",
            do="Name such a folder with base_config=FOLDER, or put it beside the file under its name (from the hub: "
            "hf download NAME --exclude '*.safetensors' '*.bin' --local-dir FOLDER); or load the file once with "
            "diffusers' from_single_file, which asks the hub for the config, and save it as a folder",
        )  # fmt: skip
    return folder


def load_single_file(loader: Any, file: Path, folder: Path, index: dict[str, Any], **options: Any) -> Any:
    """Load a pipeline from one file and the folder of its config; nothing is fetched.

    Args:
        loader: class of the pipeline.
        file: the weights.
        folder: from :func:`config_of`.
        index: the content of ``model_index.json`` there.
        **options: of ``from_pretrained``, as ``torch_dtype``.

    Raises:
        RecipeError: a denoiser alone and no weights of the other parts in the folder.
        OSError, ValueError: diffusers refuses the file.
    """
    import diffusers

    if any(name.startswith(OTHER_PARTS) for name in check_header(file).tensors):
        return loader.from_single_file(str(file), config=str(folder), local_files_only=True, **options)
    component = next((name for name in DENOISERS if index.get(name)), None)
    if component is None:
        raise RecipeError(f"model={file}", got=f"a config without {' or '.join(DENOISERS)}", needed="one of them")
    missing = [name for name in ("vae", "text_encoder") if not any((folder / name).glob("*.safetensors"))]
    if missing:
        raise RecipeError(
            f"model={file}", got=f"the denoiser alone, and no weights of {' and '.join(missing)} in {folder}",
            needed="a folder with the other parts of the pipeline", do="Name a complete pipeline with base_config",
        )  # fmt: skip
    kind: Any = getattr(diffusers, index[component][1])
    dtype = {key: value for key, value in options.items() if key == "torch_dtype"}
    denoiser = kind.from_single_file(
        str(file), config=str(folder), subfolder=component, local_files_only=True, **dtype
    )  # fmt: skip
    return loader.from_pretrained(str(folder), **{component: denoiser}, **options)
