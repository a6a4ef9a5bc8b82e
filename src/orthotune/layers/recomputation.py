"""Activation checkpointing runs a forward twice: both runs must be under the same adapters."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch

from orthotune.errors import OrthotuneError
from orthotune.rotation.strength import Strength


class Under(NamedTuple):
    """What a forward ran under."""

    adapters: tuple[tuple[str, Strength], ...]
    merged: tuple[str, ...]

    def __str__(self) -> str:
        active = [name if not s.partial else f"{name} at strength {s.t:g}" for name, s in self.adapters]
        merged = f", {', '.join(self.merged)} merged" if self.merged else ""
        return f"{', '.join(active) or 'no adapter'}{merged}"


class Forwards:
    """What the forwards of one layer ran under, as far as a backward may still run them again."""

    def __init__(self) -> None:
        self._frames: WeakKeyDictionary[Any, set[Under]] = WeakKeyDictionary()
        self._seen: set[Under] = set()
        self._backward = False

    def __reduce__(self) -> Any:
        return Forwards, ()  # a copy of a layer has run no forward

    def note(self, layer: str, now: Under) -> None:
        """Note a forward in training, and compare with the first run if this one is its repetition.

        Raises:
            OrthotuneError: a forward is repeated under other adapters than it ran under at first, so that the gradient
                would belong to another model. Names the layer and both.
        """
        hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
        place, frame = _frame(hooks[0]) if hooks else ("", None)
        if place == "first" and frame is not None:
            self._frames.setdefault(frame, set()).add(now)
            return
        if place == "again":
            before = self._frames.get(frame) if frame is not None else None
            if before is not None and now not in before:
                raise OrthotuneError(
                    f"activation checkpointing of layer '{layer}'",
                    got=f"a forward under {' or '.join(map(str, before))}, run again under {now} in the backward",
                    needed="the same adapters, strengths and merges in both runs",
                    do="Call backward before set_adapter, set_scale, merge_adapter or disable_adapter, or restore them",
                )
            return
        if torch._C._current_graph_task_id() != -1:
            self._backward = True
            if self._seen and now not in self._seen:
                warnings.warn(
                    f"Layer '{layer}' is run again in a backward under {now}; its forwards ran under "
                    f"{' and '.join(map(str, self._seen))}. If this is activation checkpointing (use_reentrant=True), "
                    "the gradient belongs to another model: call backward before adapters are switched.",
                    stacklevel=2,
                )
            return
        if self._backward:
            self._seen.clear()
            self._backward = False
        self._seen.add(now)


def _frame(pack: Any) -> tuple[str, Any]:
    """Whether a saved-tensor hook is that of a checkpoint's first run or its repetition, and the checkpoint's frame."""
    pack = getattr(pack, "_torchdynamo_orig_callable", pack)
    name = getattr(pack, "__qualname__", "")
    if not name.startswith(("_checkpoint_hook.", "_recomputation_hook.")):
        return "", None
    held = dict(zip(pack.__code__.co_freevars, (cell.cell_contents for cell in pack.__closure__ or ()), strict=True))
    if name.startswith("_checkpoint_hook."):
        return "first", held.get("frame")
    reference = held.get("target_frame_ref")
    return "again", reference() if reference is not None else None
