"""The merged value of each tensor of a checkpoint; everything is checked before a tensor is written."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from orthotune.errors import AdapterFileError, MergeError
from orthotune.files.names import shortened
from orthotune.files.tensor_entries import FLOATS, Entry, ReadBuffer
from orthotune.layers.base import OFTLayer
from orthotune.operations.checkpoint.model_folder import Checkpoint
from orthotune.operations.checkpoint.skeleton import ADAPTER, Skeleton
from orthotune.operations.checkpoint.weight_merge import merge_copy, merge_weight, release
from orthotune.tuner.tied import Untied, untied

#: Number of layers whose rotations stay in memory, and of experts whose other tensors do. Two, because the tensors of
#: two stacks of experts alternate in a file.
RECENT = 2


class Plan:
    """The new values of every tensor that changes, computed on request.

    Args:
        checkpoint: the base; the tensors in ``added`` are written in addition to its own.
        skeleton: the model with the adapter.

    Raises:
        AdapterFileError: a parameter that changes has no tensor, or a tensor of another shape or a quantized one; the
            message lists all of them.
    """

    def __init__(self, checkpoint: Checkpoint, skeleton: Skeleton) -> None:
        self.skeleton, self.entries = skeleton, checkpoint.entries()
        self.added, self.untied = self._untie()
        self.parameter_of = {
            name: parameter
            for parameter in skeleton.changed
            if parameter in skeleton.origins
            for copy in skeleton.origins[parameter].copies
            for name in copy
        }
        self._recent: list[OFTLayer] = []
        self._buffer = ReadBuffer()
        self._waiting: dict[tuple[str, int], dict[str, Tensor]] = {}
        faults = [fault for name in sorted(skeleton.changed) if (fault := self._fault(name))]
        if faults:
            raise AdapterFileError(
                f"{len(faults)} of {len(skeleton.changed)} parameters cannot be merged into the files of "
                f"{checkpoint.folder}",
                got="; ".join(faults),
                needed="one plain floating-point weight of the model's shape for each",
                do="Name the unquantized base that the adapter was trained on, or merge without --stream",
            )

    def _untie(self) -> tuple[list[Entry], Untied]:
        """Entries for tied parameters that a merge separates, and the changes of the config that this needs."""
        own = self.skeleton
        split = {pair for pair in own.tied.items() if set(pair) & own.changed}
        found = Untied()
        for model, _ in own.models.values() if split else ():
            found = untied(model, lambda name, source: (name, source) in split)
        added: list[Entry] = []
        # Twice: an entry that the first pass adds may be the source of others.
        for name, source in [*sorted(split), *found.pairs] * 2:
            for missing, present in ((name, source), (source, name)):
                if missing not in own.origins and present in own.origins:
                    (entry,) = (self.entries[tensor] for tensor in own.origins[present].copies[0])
                    self.entries[missing] = replace(entry, name=missing)
                    added.append(self.entries[missing])
                    own.origins[missing] = replace(own.origins[present], copies=[[missing]])
                    if present in own.replaced and present in own.layers:
                        own.replaced.setdefault(missing, own.replaced[present])
        return added, found

    def _fault(self, parameter: str) -> str | None:
        origin, wanted = self.skeleton.origins.get(parameter), self.skeleton.shapes[parameter]
        if origin is None:
            stem = parameter.rpartition(".")[0] + "."
            near = [name for name in self.entries if stem in name]
            return f"'{parameter}' has no tensor" + (f", but there are {shortened(near)}" if near else "")
        if origin.by:
            return f"'{parameter}' is made from its tensors by {origin.by}"
        entries = [[self.entries[name] for name in copy] for copy in origin.copies]
        odd = next((entry for copy in entries for entry in copy if entry.dtype not in FLOATS), None)
        if odd is not None:
            return f"'{parameter}' is quantized: tensor '{odd.name}' has type {odd.dtype}"
        shapes = {(sum(entry.shape[0] for entry in copy), *copy[0].shape[1:]) for copy in entries}
        found = {(len(entries), *shape) for shape in shapes} if origin.stacked else shapes
        if found != {wanted}:
            return f"'{parameter}' has shape {' or '.join(map(str, sorted(found)))} in the file, {wanted} in the model"
        given = self.skeleton.replaced.get(parameter)
        if given is not None and (tuple(given.shape) != wanted or origin.stacked or len(entries[0]) > 1):
            return f"'{parameter}' has shape {tuple(given.shape)} in the adapter, {wanted} in the model"
        return None

    def changed(self, entry: Entry) -> Tensor | None:
        """The new values of a tensor, or None if it is unchanged; they may be overwritten by the next call."""
        parameter = self.parameter_of.get(entry.name)
        if parameter is None:
            return None
        given = self.skeleton.replaced.get(parameter)
        if given is not None:
            given = given.to(FLOATS[entry.dtype], copy=True)
        if parameter not in self.skeleton.layers:
            return given
        layer, name = self.skeleton.layers[parameter]
        self._use(layer)
        if given is not None:  # PEFT saves a rotated embedding without its rotation
            return merge_weight(layer, name, given, ADAPTER)
        origin = self.skeleton.origins[parameter]
        index, _ = origin.position(entry.name)
        names = origin.copies[index]
        if not origin.stacked and len(names) == 1:
            return merge_weight(layer, name, entry.read(self._buffer), ADAPTER)
        if entry.name not in self._waiting.get((parameter, index), {}):
            pieces = [self.entries[piece].read() for piece in names]
            rows = [piece.shape[0] for piece in pieces]
            weight = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
            del pieces
            if origin.stacked:
                merge_copy(layer, name, weight, ADAPTER, index, len(origin.copies))
            else:
                merge_weight(layer, name, weight, ADAPTER)
            while len(self._waiting) >= RECENT:
                self._waiting.pop(next(iter(self._waiting)))
            self._waiting[parameter, index] = dict(zip(names, weight.split(rows), strict=True))
        waiting = self._waiting[parameter, index]
        tensor = waiting.pop(entry.name)
        if not waiting:
            del self._waiting[parameter, index]
        return tensor

    def _use(self, layer: OFTLayer) -> None:
        if not any(layer is recent for recent in self._recent):
            self._recent.append(layer)
        while len(self._recent) > RECENT:
            release(self._recent.pop(0), ADAPTER)

    def rotated(self, parameter: str) -> tuple[Tensor, Tensor]:
        """The weight of a parameter before and after the merge, both in float32 (float64 for float64 weights).

        Raises:
            MergeError: the adapter replaces the parameter, or the parameter is a stack of experts, or the new weight
                holds NaN or infinity.
        """
        origin = self.skeleton.origins[parameter]
        if parameter not in self.skeleton.layers or parameter in self.skeleton.replaced or origin.stacked:
            raise MergeError(
                f"the change of '{parameter}'",
                got="a stack of experts" if origin.stacked else "a parameter that the adapter replaces",
                needed="a weight that is rotated",
                do="Export the merged model with --to dense",
            )
        layer, name = self.skeleton.layers[parameter]
        self._use(layer)
        pieces = [self.entries[piece].read() for piece in origin.copies[0]]
        weight = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
        return weight, merge_weight(layer, name, weight.clone(), ADAPTER)
