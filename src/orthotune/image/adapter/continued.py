"""An adapter of any readable format on an image model, to be trained further."""

from __future__ import annotations

from pathlib import Path

from orthotune.errors import AdapterFileError
from orthotune.files.names import shortened
from orthotune.files.run_adapter import adapter_in
from orthotune.image.adapter.saved_adapter import load_adapter
from orthotune.image.families.pipeline_family import PipelineFamily
from orthotune.layers.base import OFTLayer


def continue_adapter(family: PipelineFamily, path: str | Path) -> list[str]:
    """Put an adapter on a pipeline for further training: it starts with exactly the parameters of the file.

    Args:
        family: the pipeline, changed in place.
        path: a file or folder of any readable format, a LoRA as diffusers writes it, or the directory of a run.

    Returns:
        Messages for the user.

    Raises:
        AdapterFileError: the adapter is damaged, belongs to another model, or holds maps that cannot be trained.

    Example:
        >>> continue_adapter(family, "runs/subject-oft")  # doctest: +SKIP
        ['adapter: runs/subject-oft/adapter is trained further; step 0 is the model with that adapter.']
    """
    folder = adapter_in(path)
    load_adapter(family, folder)
    frozen = [
        name
        for part in family.modules().values()
        for name, layer in part.named_modules()
        if isinstance(layer, OFTLayer) and any(layer.frozen_map(own) is not None for own in layer.oft_settings)
    ]
    if frozen:
        raise AdapterFileError(
            f"adapter={path}",
            got=f"maps of {len(frozen)} layers that no trainable rotation represents: {shortened(frozen)}",
            needed="block rotations", do="Merge it, orthotune merge, and train a new adapter on the result",
        )  # fmt: skip
    for part in family.modules().values():
        for parameter in part.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    return [f"adapter: {folder} is trained further; step 0 is the model with that adapter."]
