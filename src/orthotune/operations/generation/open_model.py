"""Open the language model that a user names: a run, an adapter on its base, or a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from peft import PeftModel

from orthotune.errors import AdapterFileError, ConfigError, OrthotuneError, RecipeError, nearest
from orthotune.files.installed_worlds import MODEL_WORDS, current
from orthotune.files.json_file import read_json
from orthotune.files.run_adapter import FINISHED, IMAGE_RECIPES, STARTED, adapter_in, refuse_older
from orthotune.formats.adapter_file import CONFIG_NAME
from orthotune.operations.adapter import read_once
from orthotune.operations.base_model import BaseModel, load_base
from orthotune.operations.load import apply_adapter
from orthotune.operations.other_methods import other_method, recorded_base
from orthotune.quantized.loading_options import place

#: Endings of files with an adapter.
ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
Messages = list[dict[str, str]]


@dataclass(frozen=True)
class OpenedModel:
    """A language model in evaluation, with its tokenizer.

    Args:
        model: a transformers model, or a ``PeftModel`` around one.
        tokenizer: of the base.
        source: what the user named.
        base: path, name or word of the base.
    """

    model: Any
    tokenizer: Any
    source: str
    base: str

    @property
    def adapted(self) -> bool:
        """Whether there is an adapter, which can be switched off."""
        return isinstance(self.model, PeftModel)

    @property
    def room(self) -> int | None:
        """The most tokens of prompt and answer together; None where the config names no limit."""
        found = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return int(found) if isinstance(found, int) and found > 0 else None

    @property
    def has_template(self) -> bool:
        """Whether the tokenizer has a chat template."""
        return bool(getattr(self.tokenizer, "chat_template", None))

    def tokens(self, messages: Messages, *, plain: bool = False) -> list[int]:
        """Dialogue as tokens, up to where an answer begins.

        Args:
            messages: each with ``role`` and ``content``.
            plain: join the contents without the chat template, as for a model that has none.

        Raises:
            ConfigError: the chat template refuses the dialogue.
        """
        if plain or not self.has_template:
            return list(self.tokenizer("".join(one["content"] for one in messages))["input_ids"])
        try:
            found = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
        except (TemplateError, ValueError, TypeError) as fault:
            raise ConfigError(
                f"the chat template of {self.base}", got=str(fault).strip().splitlines()[0],
                needed="a dialogue that the template renders",
                do="Leave out the system prompt" if messages[0]["role"] == "system" else "Pass plain=True, or --plain",
            ) from fault  # fmt: skip
        return list(found["input_ids"])


def open_model(
    source: str | Path, *, base: str | Path | None = None, dtype: str = "auto", quantization: str | None = None
) -> OpenedModel:
    """Load what ``source`` names, in evaluation, on the accelerator if there is one.

    Args:
        source: the directory of a run, an adapter of any readable format, or a model (path, hub name or word).
        base: of an adapter; None takes the one of the run, or the one that the adapter records.
        dtype: of the model; ``auto`` is that of its checkpoint on an accelerator, and float32 without one.
        quantization: of the base; None takes that of the run.

    Returns:
        The model. An adapter is active at strength 1.

    Raises:
        OrthotuneError: nothing is there, an unfinished run, an image model, or a damaged file.
        AdapterFileError: the adapter belongs to another base.
        ConfigError: no base is known.
        RecipeError: the base cannot be quantized in this way.

    Example:
        >>> open_model("text-world").adapted
        False
    """
    name, path = str(source), Path(source)
    if not name.strip():
        raise OrthotuneError("an empty name", needed="a run, an adapter or a model")
    run = _run_settings(path)
    if run is None and not _is_adapter(path):
        _check_exists(name)
        if base is not None:
            raise ConfigError(f"base={base} for {name}", got="a model, not an adapter", do="Leave the base out")
        return _opened(_loaded(name, dtype, quantization), name, name)
    settings = run or {}
    base_name = str(base) if base else settings.get("model")
    quantization = quantization or settings.get("quantization")
    if (path / "model").is_dir() and not (path / "adapter").is_dir() and run is not None:
        refuse_older(path, "model")
        folder = str(path / "model")  # trained in full: no adapter, and no base beside it
        return _opened(_loaded(folder, dtype, None), name, folder)
    adapter = adapter_in(path)
    if not base_name:
        recorded = recorded_base(adapter) if other_method(adapter) else read_once(adapter).state.config.get(
            "base_model_name_or_path"
        )  # fmt: skip
        if not recorded:
            raise ConfigError(f"{adapter} does not record its base model", do="Name the base with --base")
        base_name = current(str(recorded))
    loaded = _loaded(base_name, dtype, quantization)
    _check_language(loaded.model, name)
    return _opened(loaded, name, base_name, adapter)


def _run_settings(path: Path) -> Mapping[str, Any] | None:
    """The settings of the run in a directory; None for any other path."""
    if (path / CONFIG_NAME).is_file() or not any((path / name).is_file() for name in (STARTED, FINISHED)):
        return None
    record = read_json(path / FINISHED) if (path / FINISHED).is_file() else {}
    if record.get("recipe") in IMAGE_RECIPES:
        raise OrthotuneError(
            f"{path}", got=f"a run of the recipe {record['recipe']}, an image model", needed="a language model",
            do=f"Look at its images: orthotune report {path}",
        )  # fmt: skip
    found: Mapping[str, Any] = record.get("settings") or (
        read_json(path / STARTED) if (path / STARTED).is_file() else {}
    )
    return found


def _is_adapter(path: Path) -> bool:
    if path.is_file():
        return path.suffix in ENDINGS
    return (path / CONFIG_NAME).is_file() or (
        path.is_dir() and not any((path / name).is_file() for name in ("config.json", "model_index.json"))
    )


def _check_exists(name: str) -> None:
    path = Path(name)
    if path.exists() or name in MODEL_WORDS:
        return
    close = nearest(name, MODEL_WORDS, count=1)
    local = len(path.parts) > 1 and path.parent.is_dir()  # a folder of that name is here, so it is no name on the hub
    local = local or name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name
    beside = nearest(path.name, [one.name for one in path.parent.iterdir()], 1) if path.parent.is_dir() else []
    if local or beside or close:
        near = close or [str(path.with_name(beside[0]))] if close or beside else []
        raise OrthotuneError(
            f"{name}", got="no such run, adapter or model",
            needed=f"the directory of a run, an adapter, a model, or a word: {', '.join(MODEL_WORDS)}",
            do=f"Did you mean {near[0]}?" if near else "Check the path",
        )  # fmt: skip


def _loaded(name: str, dtype: str, quantization: str | None) -> BaseModel:
    # Without an accelerator, half precision is slower than float32.
    wanted = "float32" if dtype == "auto" and not torch.accelerator.is_available() else dtype
    try:
        return load_base(name, wanted, quantization)
    except OSError as fault:
        raise RecipeError(
            f"the model {name}", got=str(fault).strip().splitlines()[0],
            needed="a run, an adapter, a folder as written by save_pretrained, or a name on the hub",
            do="Check the name and the network",
        ) from fault  # fmt: skip


def _check_language(model: Any, name: str) -> None:
    if not callable(getattr(model, "generate", None)) or not hasattr(model, "get_input_embeddings"):
        raise OrthotuneError(f"{name}", got=f"a {type(model).__name__}", needed="a model that generates text")


def _opened(loaded: BaseModel, source: str, base: str, adapter: Path | None = None) -> OpenedModel:
    _check_language(loaded.model, source)
    tokenizer = next((one for one in loaded.companions if hasattr(one, "convert_ids_to_tokens")), None)
    if tokenizer is None:
        raise OrthotuneError(f"{base}", got="no tokenizer", needed="the tokenizer beside the model")
    model = loaded.model
    if getattr(model, "hf_device_map", None) is None and not getattr(model, "is_quantized", False):
        model = model.to(place())
    if adapter is not None:
        model = _with_adapter(model, adapter)
    return OpenedModel(model.eval(), tokenizer, source, base)


def _with_adapter(model: Any, adapter: Path) -> Any:
    if other_method(adapter) is None:
        return apply_adapter(model, read_once(adapter))[0]
    return load_with_peft(model, adapter)


def load_with_peft(model: Any, adapter: Path, *, trainable: bool = False) -> PeftModel:
    """Load an adapter of another method than rotations, as LoRA; a misfit is an error in words.

    Args:
        model: the base.
        adapter: a folder that PEFT wrote.
        trainable: for further training.

    Raises:
        AdapterFileError: the adapter does not belong to this model.
    """
    try:
        return PeftModel.from_pretrained(model, str(adapter), is_trainable=trainable)
    except (RuntimeError, ValueError, KeyError) as fault:
        if isinstance(fault, OrthotuneError):
            raise
        raise AdapterFileError(
            f"the adapter {adapter} for this model", got=" ".join(str(fault).split())[:200],
            needed="the base model that the adapter was trained on",
        ) from fault  # fmt: skip
