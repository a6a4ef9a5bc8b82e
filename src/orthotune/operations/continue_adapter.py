"""``continue_adapter``: an adapter of any readable format on a model, to be trained further."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import PeftModel

from orthotune.errors import AdapterFileError
from orthotune.files.names import shortened
from orthotune.files.run_adapter import adapter_in
from orthotune.operations.generation.open_model import load_with_peft
from orthotune.operations.load import load_adapter
from orthotune.operations.other_methods import other_method


def continue_adapter(model: Any, path: str | Path) -> tuple[PeftModel, list[str]]:
    """Put an adapter on a model for further training: it starts with exactly the parameters of the file.

    Args:
        model: a transformers model without an adapter.
        path: a file or folder of any readable format, a LoRA of PEFT, or the directory of a run.

    Returns:
        The model with the adapter, its parameters trainable, and sentences about it.

    Raises:
        AdapterFileError: the adapter is damaged, belongs to another base, or holds maps that cannot be trained.

    Example:
        >>> continue_adapter(model, "runs/sft-oft")[1]  # doctest: +SKIP
        ['adapter: runs/sft-oft/adapter is trained further; the losses before training are those with it.']
    """
    folder = adapter_in(path)
    if other_method(folder) is None:
        adapted, report = load_adapter(model, folder)
        if report.frozen:
            raise AdapterFileError(
                f"adapter={path}", got=f"maps of {len(report.frozen)} layers that no trainable rotation represents: "
                f"{shortened(report.frozen)}",
                needed="block rotations", do="Merge it, orthotune merge, and train a new adapter on the result",
            )  # fmt: skip
    else:
        adapted = load_with_peft(model, folder, trainable=True)
    notes = [f"adapter: {folder} is trained further; the losses before training are those with it."]
    config = adapted.peft_config["default"]
    recorded, now = config.base_model_name_or_path, getattr(model.config, "_name_or_path", None)
    if now and recorded and str(recorded) != str(now):
        notes.append(f"adapter: the file records the base {recorded}; it is trained on {now}.")
    config.base_model_name_or_path = now or recorded
    return adapted, notes
