"""Open the image model that a user names: a run, an adapter on its base, or a pipeline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from orthotune.errors import AdapterFileError, ConfigError, OrthotuneError
from orthotune.files.installed_worlds import current, model_folder
from orthotune.files.json_file import read_json
from orthotune.files.run_adapter import FINISHED, IMAGE_RECIPES, STARTED, STOPPED, refuse_older
from orthotune.formats.adapter_file import CONFIG_NAME
from orthotune.image.adapter.adapters import NAME
from orthotune.image.adapter.saved_adapter import expert_of, load_adapter
from orthotune.image.families.pipeline_family import PipelineFamily
from orthotune.image.families.registry import open_family
from orthotune.operations.adapter import HINT_ENCODER, read_once
from orthotune.operations.generation.adapter_strength import scale_layers
from orthotune.operations.generation.open_model import ENDINGS
from orthotune.operations.lora_file import PIPELINE_WEIGHTS
from orthotune.operations.other_methods import other_method, recorded_base
from orthotune.quantized.loading_options import place
from orthotune.runs.adapter_off import adapter_off
from orthotune.runs.checkpoint_folder import newest
from orthotune.runs.layer_strengths import LayerStrengths, layer_strengths

PIPELINE = "model_index.json"


@dataclass(frozen=True)
class OpenedPipeline:
    """An image model that generates, with its adapter if it has one.

    Args:
        family: the pipeline.
        source: what the user named.
        base: path, name or word of the base.
        adapter: file or folder of the adapter; None of a pipeline without one, and after full finetuning.
        settings: of the run, if it is one.
        weights: the strengths of weights that were trained in full; None for an adapter.
    """

    family: PipelineFamily
    source: str
    base: str
    adapter: Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    weights: LayerStrengths | None = None

    @property
    def trained(self) -> bool:
        """Whether there is something to switch off: an adapter, or weights that differ from those of the base."""
        return self.adapter is not None or self.weights is not None

    @contextmanager
    def at(self, strength: float | None) -> Iterator[None]:
        """Use the adapter at a strength for a block.

        Args:
            strength: 0 is the base, 1 the adapter as trained; None switches the adapter off.

        Raises:
            ConfigError: not a finite number, or a part of the adapter has no strength.
        """
        if not self.trained:
            if strength not in (None, 1.0):
                raise ConfigError(
                    f"strength {strength:g}", got=f"{self.source}, a model without an adapter",
                    needed="a run or an adapter",
                )  # fmt: skip
            yield
        elif self.weights is not None:
            self.weights.set(dict.fromkeys(self.weights.names, 0.0 if strength is None else strength))
            try:
                yield
            finally:
                self.weights.set(dict.fromkeys(self.weights.names, 1.0))
        else:
            with self._adapter_at(strength):
                yield

    @contextmanager
    def _adapter_at(self, strength: float | None) -> Iterator[None]:
        parts = [part for part in self.family.modules().values() if NAME in (getattr(part, "peft_config", None) or {})]
        if strength is None:
            with adapter_off(nn.ModuleList(parts)):
                yield
            return
        try:
            for part in parts:
                scale_layers(part, strength, NAME)
            yield
        finally:
            for part in parts:
                scale_layers(part, 1.0, NAME)


def open_pipeline(
    source: str | Path, base: str | Path | None = None, dtype: torch.dtype | None = None
) -> OpenedPipeline:
    """Open a run, an adapter on its base, or a pipeline, to generate images.

    Args:
        source: the directory of a run on an image model (of one that is not finished, its newest checkpoint is taken),
            a folder or file with an adapter of any readable format, or a pipeline: a folder, a hub name or
            ``image-world``.
        base: of an adapter, if it does not record one or another is wanted.
        dtype: of the weights; float32 without an accelerator, else bfloat16 if None.

    Raises:
        OrthotuneError: nothing is there, a run of a language model, or a control run, which needs control images.
        ConfigError: no base is known.
        RecipeError: the base is no pipeline of a known family.
        AdapterFileError: the adapter is damaged, or belongs to another base.

    Example:
        >>> open_pipeline("image-world").trained
        False
    """
    name, path = str(source), Path(source)
    if not name.strip():
        raise OrthotuneError("an empty name", needed="a run, an adapter or a pipeline")
    settings = _settings_of_run(path)
    if settings is None and not _is_adapter(path):
        if base is not None:
            raise ConfigError(f"base={base} for {name}", got="a pipeline, not an adapter", do="Leave the base out")
        return OpenedPipeline(_loaded(name, dtype), name, name)
    known = settings or {}
    wanted = str(base) if base else known.get("model")
    if settings is not None and (path / "model").is_dir() and not (path / "adapter").is_dir():
        refuse_older(path, "model")
        return _in_full(name, path / "model", str(wanted), known, dtype)
    adapter = path if settings is None else _adapter_of_run(path)
    if adapter.is_dir() and (adapter / HINT_ENCODER).is_file():
        raise OrthotuneError(
            f"{name}", got="an adapter with an encoder of control images", needed="a control image for each prompt",
            do="Generate with orthotune.ControlPipeline.from_pretrained(BASE, ADAPTER), as the guide to control shows",
        )  # fmt: skip
    wanted = wanted or _recorded(adapter)
    family = _loaded(wanted, dtype, None if base else known.get("base_config"))
    if expert := expert_of(adapter):
        family.train_expert(expert)
    _add(family, adapter)
    return OpenedPipeline(family, name, wanted, adapter, known)


def _settings_of_run(path: Path) -> Mapping[str, Any] | None:
    """The settings of the run in a directory; None for any other path."""
    if (path / CONFIG_NAME).is_file() or not any((path / name).is_file() for name in (STARTED, FINISHED)):
        return None
    record = read_json(path / FINISHED) if (path / FINISHED).is_file() else {}
    started = read_json(path / STARTED) if (path / STARTED).is_file() else {}
    recipe = record.get("recipe") or started.get("recipe")
    if recipe not in IMAGE_RECIPES and recipe != "magnitude":
        raise OrthotuneError(
            f"{path}", got=f"a run of the recipe {recipe}", needed="a run of an image model",
            do=f"Ask it: orthotune generate {path} PROMPT",
        )  # fmt: skip
    found: Mapping[str, Any] = record.get("settings") or started
    return found


def _adapter_of_run(path: Path) -> Path:
    complete = any((path / name).is_file() for name in (FINISHED, STOPPED))
    found = None if complete else newest(path / "checkpoints")
    if found is not None and _is_adapter(found):
        return found  # newer than an adapter that an earlier stop of the same run, or a shorter run, has left
    if (path / "adapter").is_dir():
        return path / "adapter"
    raise AdapterFileError(
        f"the run in {path}", got="no adapter and no checkpoint with one",
        do="Go on with the same command and resume=auto, or touch save-now in the run directory while it trains",
    )  # fmt: skip


def _is_adapter(path: Path) -> bool:
    if path.is_file():
        return path.suffix in ENDINGS
    return (path / CONFIG_NAME).is_file() or (path / PIPELINE_WEIGHTS).is_file()


def _recorded(adapter: Path) -> str:
    found = (
        recorded_base(adapter) if other_method(adapter) else read_once(adapter).state.config.get(
            "base_model_name_or_path"
        )
    )  # fmt: skip
    if not found:
        raise ConfigError(f"{adapter} does not record its base model", do="Name the base with --base")
    return current(str(found))


def _loaded(base: str, dtype: torch.dtype | None, config: str | None = None) -> PipelineFamily:
    usual = torch.bfloat16 if torch.accelerator.is_available() else torch.float32
    return open_family(model_folder(base), dtype or usual, place(), config)


def _add(family: PipelineFamily, adapter: Path) -> None:
    load_adapter(family, adapter)
    for part in family.modules().values():
        part.requires_grad_(False).eval()


def _in_full(
    name: str, folder: Path, base: str, settings: Mapping[str, Any], dtype: torch.dtype | None
) -> OpenedPipeline:
    """The pipeline of a run that trained all weights, with the base beside it for other strengths."""
    family, before = _loaded(str(folder), dtype), _loaded(base, dtype, settings.get("base_config"))
    weights = layer_strengths(_networks(family), base=_networks(before))
    return OpenedPipeline(family, name, base, None, settings, weights)


def _networks(family: PipelineFamily) -> nn.ModuleDict:
    return nn.ModuleDict({family.denoiser_name: family.denoiser, **family.text_encoders})
