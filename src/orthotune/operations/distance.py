"""``distance``: the angle between two adapter files."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from orthotune.operations.adapter import read_once
from orthotune.operations.diagnosis.comparison import compare_adapters


def distance(one: str | Path, other: str | Path, **options: Any) -> dict[str, Any]:
    """The angle between two adapters, layer by layer.

    Args:
        one: a folder as PEFT writes it, or one file of any readable format.
        other: the other adapter, likewise.
        options: facts that the files do not record, see
            :class:`~orthotune.formats.read_options.ReadOptions`.

    Returns:
        Plain values ready for JSON: ``adapters``, ``layers`` with one row for each rotation (angles in radians), and
        ``only_in_one``, the layers that cannot be compared.

    Raises:
        AdapterFileError: no layer is rotated by both, or their blocks cannot be compared.

    Example:
        >>> import tempfile, torch
        >>> from safetensors.torch import save_file
        >>> path = f"{tempfile.mkdtemp()}/style.safetensors"
        >>> save_file({"lora_unet_blk_lin.oft_R.weight": torch.full((2, 1), 0.1)}, path)
        >>> distance(path, path)["layers"][0]["angle_max"]
        0.0
    """
    first, second = read_once(one, **options).state, read_once(other, **options).state
    rows, alone = compare_adapters(first, second)
    adapters = [str(first.source), str(second.source)]
    return {"adapters": adapters, "layers": [asdict(row) for row in rows], "only_in_one": alone}
