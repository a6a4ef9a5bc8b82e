"""Load the base model of an adapter, from any of the supported libraries, and save it again."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open

from orthotune.errors import AdapterFileError, OrthotuneError
from orthotune.files.installed_worlds import TEXT_WORLD, model_folder
from orthotune.files.json_file import read_json
from orthotune.operations.checkpoint.model_folder import copy_missing
from orthotune.operations.headed_base import HeadedBase
from orthotune.quantized.loading_options import loading_options

#: The built-in language model, by the name that recipes give it and that its adapters record.
WORLD = TEXT_WORLD
#: Last parts of the names of tensors that only quantized checkpoints have.
SCALES = {
    "weight_scale",
    "weight_scale_inv",
    "scales",
    "qzeros",
    "g_idx",
    "SCB",
    "absmax",
    "quant_map",
    "weight_format",
}


@dataclass
class BaseModel:
    """A loaded base model.

    Args:
        model: the module that the adapter goes into.
        companions: tokenizer and processors, saved beside the model.
        pipeline: for a base that is a pipeline, the diffusers pipeline and the name of the component.
        folder: where the base is on this disk; None when that is not known.
        headed: what the adapter says of the model that its base is loaded as.
    """

    model: Any
    companions: list[Any] = field(default_factory=list)
    pipeline: tuple[Any, str] | None = None
    folder: Path | None = None
    headed: HeadedBase | None = None

    def save(self, model: Any, folder: Path) -> None:
        """Write ``model`` to ``folder`` in the layout of the base."""
        if self.pipeline is not None:
            pipe, component = self.pipeline
            setattr(pipe, component, model)
            pipe.save_pretrained(folder)
            return
        model.save_pretrained(folder)
        for companion in self.companions:
            companion.save_pretrained(folder)
        if self.folder is not None:
            copy_missing(self.folder, folder)
        if self.headed is not None:
            self.headed.copy_parts(folder)


def load_base(
    base: str, dtype: str = "auto", quantization: str | None = None, headed: HeadedBase | None = None
) -> BaseModel:
    """Load the model at a path or on the hub.

    Args:
        base: path, name on the hub, or :data:`WORLD`.
        dtype: the name of a torch dtype, or ``auto`` for the dtype of the checkpoint.
        quantization: a name from ``orthotune.quantized.loading_options``, for transformers models only.
        headed: what the adapter says of the model that its base is loaded as; None for the class that the base names.

    Raises:
        OrthotuneError: the path is not a model, or the installed libraries do not know its class.

    Example:
        >>> load_base("gpt2").model  # doctest: +SKIP
        GPT2LMHeadModel(...)
    """
    folder = place_of(base)
    if folder.is_file():
        raise OrthotuneError(f"--base {base}", got="a file", needed="a folder with config.json, or a name on the hub")
    if folder.is_dir():
        if quantization and not (folder / "config.json").is_file():
            raise OrthotuneError(f"--quantization {quantization}", got="a pipeline", needed="a transformers model")
        if (folder / "model_index.json").is_file():
            return _pipeline(folder, dtype)
        if not (folder / "config.json").is_file():
            raise OrthotuneError(f"--base {base}", got="a folder without config.json", needed="a saved model")
        if "_class_name" in read_json(folder / "config.json", error=AdapterFileError):
            return _diffusers(folder, dtype)
    elif base.startswith((".", "/", "~")) or base.count("/") > 1 or "\\" in base:
        # This cannot be a name on the hub, and the hub's own error message would be misleading.
        raise OrthotuneError(f"The base model {base} does not exist", do="Check the path, or name another with --base")
    return _transformers(str(folder), dtype, quantization, headed)


def place_of(base: str) -> Path:
    """The folder or file of a base model; a name on the hub is returned unchanged.

    Example:
        >>> place_of("models/llama").as_posix(), place_of("text-world").name
        ('models/llama', 'model')
    """
    return Path(model_folder(base))


def _transformers(base: str, dtype: str, quantization: str | None, headed: HeadedBase | None) -> BaseModel:
    compute = torch.float32 if dtype == "auto" else getattr(torch, dtype)
    options = loading_options(quantization, base, compute) if quantization else {}

    # False, not None: with None, transformers asks on the terminal whether it may run code from the model's files.
    described = base if headed is None else headed.config
    config = transformers.AutoConfig.from_pretrained(described, trust_remote_code=False)
    named = getattr(transformers, str((config.architectures or [None])[0]), None)
    own = isinstance(named, type) and issubclass(named, transformers.PreTrainedModel)
    loader: Any = named if own else transformers.AutoModelForCausalLM
    options |= {"trust_remote_code": False}
    if headed is not None:  # the base may have a head of other labels, or none
        options |= {"config": config, "ignore_mismatched_sizes": True}
    model, found = loader.from_pretrained(base, dtype=dtype, output_loading_info=True, **options)
    _refuse_incomplete(base, found, headed)
    return BaseModel(model, _companions(base), folder=_folder_of(base), headed=headed)


def _folder_of(base: str) -> Path | None:
    """The folder of a base; of one on the hub, what is cached of it."""
    if Path(base).is_dir():
        return Path(base)
    config = transformers.utils.cached_file(base, "config.json", _raise_exceptions_for_missing_entries=False)
    return Path(config).parent if config else None


def _refuse_incomplete(base: str, found: dict[str, Any], headed: HeadedBase | None = None) -> None:
    """Refuse a checkpoint that lacks tensors, which would be random, or that has scales of quantized weights."""
    mismatched = [key if isinstance(key, str) else key[0] for key in found.get("mismatched_keys") or ()]
    lacking = {*(found.get("missing_keys") or ()), *mismatched}
    missing = sorted(key for key in lacking if headed is None or not headed.has(key))
    scales = sorted(key for key in found.get("unexpected_keys") or () if key.rsplit(".", 1)[-1] in SCALES)
    for keys, what in (
        (missing, "no tensors for"),
        (scales, "scales of quantized weights, but no quantization config:"),
    ):
        if keys:
            shown = ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
            raise OrthotuneError(
                f"the base model {base} is incomplete", got=f"{what} {shown}", do="Copy or download it again"
            )


def _companions(base: str) -> list[Any]:
    found: list[Any] = []
    for kind in ("AutoTokenizer", "AutoImageProcessor", "AutoFeatureExtractor"):
        try:
            found.append(getattr(transformers, kind).from_pretrained(base, trust_remote_code=False))
        except (OSError, ValueError, KeyError, ImportError):
            continue  # an image model has no tokenizer, a language model no image processor
    return found


def _diffusers(folder: Path, dtype: str) -> BaseModel:
    import diffusers

    name = read_json(folder / "config.json")["_class_name"]
    kind: Any = getattr(diffusers, str(name), None)
    known = isinstance(kind, type) and issubclass(kind, diffusers.ModelMixin)
    if not known:
        raise OrthotuneError(f"--base {folder}", got=f"_class_name {name!r}", needed="a model class of diffusers")
    return BaseModel(kind.from_pretrained(folder, **_torch_dtype(folder, dtype)), folder=folder)


def _pipeline(folder: Path, dtype: str) -> BaseModel:
    import diffusers

    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, **_torch_dtype(folder, dtype))
    component = next((name for name in ("unet", "transformer") if getattr(pipe, name, None) is not None), None)
    if component is None:
        raise OrthotuneError(
            f"--base {folder}", got="a pipeline without unet or transformer", do="Give the folder of the component"
        )
    return BaseModel(getattr(pipe, component), pipeline=(pipe, component))


def _torch_dtype(folder: Path, dtype: str) -> dict[str, Any]:
    if dtype != "auto":
        return {"torch_dtype": getattr(torch, dtype)}
    # Without a dtype, diffusers loads in float32; the first weight file has the dtype that was saved.
    for file in sorted(folder.rglob("*diffusion_pytorch_model*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 (it is no mapping)
                if tensors.get_slice(key).get_dtype() in ("F16", "BF16"):
                    return {"torch_dtype": tensors.get_tensor(key).dtype}
                break
    return {}
