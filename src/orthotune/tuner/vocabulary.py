"""Resized vocabularies: if one of the two matrices is adapted, the file must also hold the other one."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from orthotune.tuner.places import base_of


class SavedState(dict[str, Tensor]):
    """The tensors of an adapter as PEFT's host collects them for a file.

    The host adds the matrices of the vocabulary by :meth:`update` where ``save_embedding_layers`` asks for it, only
    those that are adapted when one of them is. A matrix that was resized and is not adapted is added beside them: it
    would be initialized randomly when the file is loaded. Without it there is a warning, when the host reads the
    result.
    """

    def __init__(self, own: dict[str, Tensor], model: nn.Module, config: Any, state: Mapping[str, Tensor]) -> None:
        super().__init__(own)
        self._state = state
        self._resized = resized(model, config)

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Add tensors, and to matrices of the vocabulary the others of it."""
        found = dict(*args, **kwargs)
        super().update(found)
        if any(key.startswith(prefix) for prefix in self._resized for key in found):
            for prefix, adapted in self._resized.items():
                if not adapted:
                    super().update({key: self._state[key] for key in self._state if key.startswith(prefix)})

    def items(self) -> Any:
        """The tensors, after a warning about what is missing."""
        missing = [prefix[:-1] for prefix in self._resized if not any(key.startswith(prefix) for key in self)]
        if missing:
            warnings.warn(
                f"The vocabulary was resized, and the file lacks the rows of {' and '.join(missing)}: the new tokens "
                "will be initialized randomly on loading. Save with save_embedding_layers=True, or name the layers in "
                "modules_to_save.",
                stacklevel=3,
            )
        return super().items()


def resized(model: nn.Module, config: Any) -> dict[str, bool]:
    """The matrices of a vocabulary whose size is another one than in the base's config.

    Args:
        model: a model of transformers, or one around it.
        config: of the adapter; it names the base.

    Returns:
        What their keys begin with, and whether they are adapted; none when nothing is known of the base.
    """
    base = base_of(model)
    if not hasattr(base, "get_input_embeddings") or not hasattr(base, "get_output_embeddings"):
        return {}
    now, before = _size(getattr(base, "config", None)), _size(_base_config(base, config))
    if now is None or before is None or now == before:
        return {}
    try:
        layers = [base.get_input_embeddings(), base.get_output_embeddings()]
    except (NotImplementedError, AttributeError):
        return {}
    found: dict[str, bool] = {}
    seen = set()
    for layer in layers:
        weight = getattr(layer, "weight", None)
        if layer is None or isinstance(layer, AuxiliaryTrainingWrapper) or id(weight) in seen:
            continue
        seen.add(id(weight))
        name = next((key for key, module in model.named_modules() if module is layer), None)
        if name is not None:
            adapted = isinstance(layer, BaseTunerLayer)
            found[f"{name}.base_layer." if adapted else f"{name}."] = adapted
    return found


def _size(config: Any) -> int | None:
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    size = getattr(text, "vocab_size", None)
    return size if isinstance(size, int) else None


def _base_config(base: Any, config: Any) -> Any:
    """The config of the base on this machine; nothing is downloaded for a warning."""
    name = getattr(config, "base_model_name_or_path", None)
    kind: Any = type(getattr(base, "config", None))
    if not name or not hasattr(kind, "from_pretrained"):
        return None
    if Path(name).exists() and not Path(name, "config.json").is_file():
        return None
    try:
        return kind.from_pretrained(name, local_files_only=True)
    except Exception:  # whatever keeps it from being read, a save must not fail for it
        return None
