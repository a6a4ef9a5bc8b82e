"""From the files of a base model to those of a merged one, one tensor in memory at a time."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orthotune.errors import OutputError
from orthotune.merging.checkpoint import INDEX, Checkpoint, open_checkpoint
from orthotune.merging.plan import Plan
from orthotune.merging.skeleton import build_skeleton
from orthotune.merging.tensor_file import write_file, writing


def merge_checkpoint(
    adapter: str | Path, base: str | Path, out: str | Path, progress: Callable[[int, int, str], None] | None = None
) -> None:
    """Merge the adapter in ``adapter`` into the checkpoint in ``base``, and write the result into the folder ``out``.

    The merged weights are those that ``merge_and_unload`` gives. Names, number types, shards and the files beside the
    weights stay the base's. Every check that can be made without reading weights comes before the first byte is
    written; the caller removes ``out`` when there is an error.

    Args:
        adapter: folder of the adapter.
        base: folder with config.json and safetensors files.
        out: an existing, empty folder.
        progress: called before each shard with its number from 1, the number of shards and its name.

    Raises:
        AdapterFileError: the adapter or the checkpoint is damaged, or they do not belong together.
        MergeError: a merged weight would hold NaN or infinity.
        OutputError: ``out`` cannot be written to or its disk is too small.

    Example:
        >>> merge_checkpoint("runs/sft/adapter", "models/llama", "merged")  # doctest: +SKIP
    """
    base, out = Path(base), Path(out)
    checkpoint = open_checkpoint(base)
    plan = Plan(checkpoint, build_skeleton(base, Path(adapter), list(checkpoint.entries())))
    checkpoint.shards[-1].entries.extend(plan.added)
    needed = sum(entry.size for shard in checkpoint.shards for entry in shard.entries)
    free = shutil.disk_usage(out).free
    if free < needed:
        raise OutputError(
            f"--out {out}", got=f"{free / 2**30:.1f} GiB of free space", needed=f"{needed / 2**30:.1f} GiB",
            do="Free some space, or name another place",
        )  # fmt: skip
    for number, shard in enumerate(checkpoint.shards, 1):
        if progress is not None:
            progress(number, len(checkpoint.shards), shard.name)
        write_file(out / shard.name, shard.entries, shard.metadata, plan.changed)
    for path in checkpoint.companions():
        with writing(out / path.name):
            (shutil.copytree if path.is_dir() else shutil.copyfile)(path, out / path.name)
    _write_index(checkpoint, out, needed)
    if plan.untied:
        _untie_config(out / "config.json")


def _write_index(checkpoint: Checkpoint, out: Path, size: int) -> None:
    if checkpoint.index is None:
        return
    metadata = {**(checkpoint.index.get("metadata") or {}), "total_size": size}
    added = {entry.name for shard in checkpoint.shards for entry in shard.entries} - set(checkpoint.index["weight_map"])
    numbers = sum(math.prod(entry.shape) for entry in checkpoint.shards[-1].entries if entry.name in added)
    if "total_parameters" in metadata:
        metadata["total_parameters"] += numbers
    places = {entry.name: shard.name for shard in checkpoint.shards for entry in shard.entries}
    index: dict[str, Any] = {**checkpoint.index, "metadata": metadata, "weight_map": dict(sorted(places.items()))}
    with writing(out / INDEX):
        (out / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _untie_config(path: Path) -> None:
    config = json.loads(path.read_text(encoding="utf-8"))
    config["tie_word_embeddings"] = False
    if isinstance(config.get("text_config"), dict) and "tie_word_embeddings" in config["text_config"]:
        config["text_config"]["tie_word_embeddings"] = False
    with writing(path):
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
