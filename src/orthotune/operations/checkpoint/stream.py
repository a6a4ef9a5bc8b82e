"""Merge the files of a base model with an adapter, with one tensor in memory at a time."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from orthotune.errors import OutputError
from orthotune.files.failed_write import writing
from orthotune.files.journal import Journal
from orthotune.files.json_file import read_json, write_json
from orthotune.files.tensor_entries import Entry, write_file
from orthotune.operations.adapter import Adapter, read_once
from orthotune.operations.checkpoint.base_files import Part, open_base
from orthotune.operations.checkpoint.plan import Plan
from orthotune.operations.checkpoint.skeleton import build_skeletons
from orthotune.operations.headed_base import headed_base
from orthotune.rotation.strength import Kind
from orthotune.tuner.tied import Untied


def merge_checkpoint(
    adapter: str | Path,
    base: str | Path,
    out: str | Path,
    progress: Callable[[int, int, str], None] | None = None,
    strength: float = 1.0,
    kind: Kind | None = None,
) -> None:
    """Merge the adapter in ``adapter`` into the checkpoint in ``base``, and write the result into the folder ``out``.

    The merged weights equal those of ``merge_and_unload``. Names, dtypes, shards and the files beside the weights are
    those of the base. All checks that do not need the weights are made before the first byte is written; after an error
    the caller removes ``out``.

    Args:
        adapter: file or folder of any readable format.
        base: folder with config.json and safetensors files, a diffusers folder, or one safetensors file.
        out: an existing, empty folder.
        progress: called before each shard with its number from 1, the number of shards and its name.
        strength: strength of the adapter, see :func:`~orthotune.tuner.strength.set_scale`.
        kind: interpolation for other strengths than 1; None for that of the tool that wrote the file, or ``geodesic``.

    Raises:
        AdapterFileError: the adapter or the checkpoint is damaged, or they do not belong together.
        MergeError: a merged weight would hold NaN or infinity.
        OutputError: ``out`` cannot be written to, or its disk has too little free space.

    Example:
        >>> merge_checkpoint("runs/sft/adapter", "models/llama", "merged")  # doctest: +SKIP
    """
    DenseMerge(read_once(adapter), base, strength=strength, kind=kind).write(Path(out), progress)


class DenseMerge:
    """A merge that is checked and ready to be written.

    Args:
        adapter: the adapter.
        base: as for :func:`merge_checkpoint`.
        strict: raise an error for layers of the adapter that the base does not have.
        strength: as for :func:`merge_checkpoint`.
        kind: as for :func:`merge_checkpoint`.

    Attributes:
        strength: the strength as text for a fingerprint; empty for strength 1.
        report: the matched and unmatched layers.
        size: bytes of all weights.

    Raises:
        AdapterFileError, MergeError: as for :func:`merge_checkpoint`; nothing is written.
    """

    def __init__(
        self,
        adapter: Adapter,
        base: str | Path,
        *,
        strict: bool = True,
        strength: float = 1.0,
        kind: Kind | None = None,
    ) -> None:
        self.strength = [f"{kind or 'its own kind'} {strength!r}"] if strength != 1 else []
        self.base = open_base(base)
        if (headed := headed_base(adapter.path)) is not None:
            headed.require_same(self.base.path)
        skeletons, self.report = build_skeletons(self.base, adapter, strict=strict)
        for skeleton in skeletons if strength != 1 else ():
            skeleton.set_scale(strength, kind)
        self.plans = [
            Plan(part.checkpoint, skeleton) for part, skeleton in zip(self.base.parts, skeletons, strict=True)
        ]
        for part, plan in zip(self.base.parts, self.plans, strict=True):
            part.checkpoint.shards[-1].entries.extend(plan.added)
        self.size = sum(map(_size, self.base.parts))

    def write(
        self,
        out: Path,
        progress: Callable[[int, int, str], None] | None = None,
        advance: Callable[[int], None] | None = None,
        journal: Journal | None = None,
    ) -> None:
        """Write the merged base into the folder ``out``.

        Args:
            out: an existing folder, empty except for files that ``journal`` lists.
            progress: called before each shard with its number from 1, the number of shards and its name.
            advance: called after each tensor with its number of bytes.
            journal: the record of finished files, from an earlier, interrupted call and of this call.

        Raises:
            MergeError, OutputError: as for :func:`merge_checkpoint`.
        """
        shards = [
            (part, plan, shard)
            for part, plan in zip(self.base.parts, self.plans, strict=True)
            for shard in part.checkpoint.shards
        ]
        files = [(part.place / shard.name).as_posix() for part, _, shard in shards]
        sizes = [sum(entry.size for entry in shard.entries) for _, _, shard in shards]
        left = [journal is None or not journal.done(name) for name in files]
        _check_space(out, sum(size for size, wanted in zip(sizes, left, strict=True) if wanted))
        for number, ((_, plan, shard), name, size) in enumerate(zip(shards, files, sizes, strict=True), 1):
            if progress is not None:
                progress(number, len(shards), name)
            if journal is not None and journal.done(name):
                if advance is not None:
                    advance(size)
                continue
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            write_file(out / name, shard.entries, shard.metadata, _with_progress(plan.changed, advance))
            if journal is not None:
                journal.add(name)
        for path, target in self.base.companions:
            with writing(out / target):
                (out / target).parent.mkdir(parents=True, exist_ok=True)
                if path.is_dir():
                    shutil.copytree(path, out / target, dirs_exist_ok=True)
                else:
                    shutil.copyfile(path, out / target)
        for part, plan in zip(self.base.parts, self.plans, strict=True):
            _write_index(part, out / part.place)
            if plan.untied:
                _untie_config(plan.untied, out / part.place / "config.json")


def _with_progress(changed: Callable[[Entry], Tensor | None], advance: Callable[[int], None] | None) -> Any:
    def computed(entry: Entry) -> Tensor | None:
        tensor = changed(entry)
        if advance is not None:
            advance(entry.size)
        return tensor

    return computed


def _size(part: Part) -> int:
    return sum(entry.size for shard in part.checkpoint.shards for entry in shard.entries)


def _check_space(out: Path, needed: int) -> None:
    free = shutil.disk_usage(out).free
    if free < needed:
        raise OutputError(
            f"--out {out}", got=f"{free / 2**30:.1f} GiB of free space", needed=f"{needed / 2**30:.1f} GiB",
            do="Free some space, or choose another folder",
        )  # fmt: skip


def _write_index(part: Part, out: Path) -> None:
    checkpoint = part.checkpoint
    if checkpoint.index is None:
        return
    metadata = {**(checkpoint.index.get("metadata") or {}), "total_size": _size(part)}
    added = {entry.name for shard in checkpoint.shards for entry in shard.entries} - set(checkpoint.index["weight_map"])
    elements = sum(math.prod(entry.shape) for entry in checkpoint.shards[-1].entries if entry.name in added)
    if "total_parameters" in metadata:
        metadata["total_parameters"] += elements
    files = {entry.name: shard.name for shard in checkpoint.shards for entry in shard.entries}
    index: dict[str, Any] = {**checkpoint.index, "metadata": metadata, "weight_map": dict(sorted(files.items()))}
    write_json(out / checkpoint.index_name, index, nan_as_null=False)


def _untie_config(found: Untied, path: Path) -> None:
    config = read_json(path)
    found.write(config)
    write_json(path, config, nan_as_null=False)
