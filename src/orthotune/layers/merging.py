"""Merging rotations into base weights, and taking them out again bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from orthotune.errors import MergeError
from orthotune.kernels.finite import all_finite
from orthotune.layers.offloaded import stay_in_memory
from orthotune.layers.parametrization.sharding import refuse_parts
from orthotune.layers.settings import Slot
from orthotune.rotation.strength import FULL, Strength


class Merging(BaseTunerLayer):
    """Merge and unmerge for a layer that has ``rotated_matrices``, ``rotations``, ``stored`` and ``base_parameters``.

    The originals are kept while merged, so the weight is held twice; ``merge_and_unload`` keeps them only until the
    next layer. Adapters are always merged together from the originals and rounded to the base's dtype once.
    """

    # PEFT's mixin is not typed; nn.Module would answer for these with Tensor | Module.
    base_layer: Any
    get_base_layer: Callable[[], Any]
    active_adapters: Any
    set_adapter: Callable[..., None]
    slots: dict[str, Slot]
    in_order: Callable[[list[str]], list[str]]
    strength: Callable[[str], Strength]
    at_strengths: Callable[[dict[str, Strength]], AbstractContextManager[None]]

    def start_unmerged(self) -> None:
        """Nothing is merged yet; called once by the layer."""
        self.merged_adapters: list[str] = []
        self._stash: dict[str, nn.Parameter] = {}
        for slot in self.slots.values():
            slot.merged_at = None

    def merged_strengths(self) -> dict[str, Strength]:
        """The strengths that adapters were merged at: what is merged stays so until it is merged anew."""
        return {name: self.slots[name].merged_at or FULL for name in self.merged_adapters if name in self.slots}

    def original(self, name: str) -> nn.Parameter:
        """The base parameter as it was before any merge, where and in what dtype the model is now."""
        current = self.base_parameters()[name]
        kept = self._stash.get(name, current)
        if kept is not current:
            kept.data = kept.data.to(current)  # the model may have moved while merged
        return kept

    @contextmanager
    def unmerged(self) -> Iterator[dict[str, nn.Parameter]]:
        """Context manager: restore the original base parameters; at the end the merged ones are put back."""
        originals = {name: self.original(name) for name in self.base_parameters()}
        with self.holding(originals):
            yield originals

    @contextmanager
    def holding(self, parameters: dict[str, nn.Parameter]) -> Iterator[None]:
        """Context manager: replace base parameters by others; at the end the present ones are put back."""
        current = dict(self.base_parameters())
        self._put(parameters)
        try:
            yield
        finally:
            self._put(current)

    def merged_parameters(self, adapters: list[str], safe: bool = False) -> dict[str, Tensor]:
        """New base parameters with ``adapters`` merged, in the base's dtype and memory format; writes nothing.

        Raises:
            MergeError: a parameter is spread over processes; or, with ``safe``, an adapter holds NaN or infinite
            numbers or a weight would become so. Names the layer, the adapters and the parameter.
        """
        refuse_parts(self.slots[adapters[0]].settings.layer, self.base_parameters())
        with torch.no_grad(), self.at_strengths(self.merged_strengths()):
            new = self.rotated_matrices(adapters, every_block=True, rounded=True)
            for name, base in self.base_parameters().items():
                if new[name].stride() != base.stride():
                    new[name] = torch.empty_like(base, requires_grad=False).copy_(new[name])
        # An infinite parameter of an adapter is a rotation by pi, which the new weight would not show.
        checked = {f"adapter '{name}'": self.stored(name) for name in adapters if safe}
        checked |= {f"the new {name}": [weight] for name, weight in new.items() if safe}
        for what, tensors in checked.items():
            if not all(all_finite(tensor) for tensor in tensors):
                raise MergeError(
                    f"merging {adapters} into layer '{self.slots[adapters[0]].settings.layer}'",
                    got=f"NaN or infinite values in {what}",
                    do="Nothing was changed. The adapter or the base weight is broken: run `orthotune inspect`",
                )
        return new

    def check_mergeable(self, adapters: list[str]) -> None:
        """For kinds that cannot merge every adapter exactly; the others merge all.

        Raises:
            MergeError: the merged layer would compute something else.
        """

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Merge adapters (the active ones by default) into the base weight; :meth:`unmerge` restores it bit for bit.

        Raises:
            MergeError: see :meth:`check_mergeable`; with ``safe_merge``, when a weight would not be finite. Nothing is
            changed then.
        """
        wanted = [name for name in check_adapters_to_merge(self, adapter_names) or [] if name in self.slots]
        if not wanted:
            return
        self.check_mergeable(wanted)
        stay_in_memory(self)
        # In the order in which they act un-merged, so that merging one of several active adapters changes nothing.
        names = self.in_order([*self.merged_adapters, *wanted])
        with self.unmerged() as originals:
            new = self.merged_parameters(names, safe_merge)
        self._write(new, originals)
        self.merged_adapters = names
        for name in wanted:
            self.slots[name].merged_at = self.strength(name)

    def _write(self, new: dict[str, Tensor], originals: dict[str, nn.Parameter]) -> None:
        self._stash = originals
        self._put({k: nn.Parameter(v, requires_grad=originals[k].requires_grad) for k, v in new.items()})

    def _put(self, parameters: dict[str, nn.Parameter]) -> None:
        # A new Parameter, not a write in place: a weight tied to another module leaves that module alone.
        for name, parameter in parameters.items():
            owner, _, leaf = name.rpartition(".")
            setattr(self.get_base_layer().get_submodule(owner), leaf, parameter)

    def unmerge(self) -> None:
        """Put the original base parameters back, bit for bit; without effect when nothing is merged."""
        if self._stash:
            stay_in_memory(self)
        self._put({name: self.original(name) for name in self._stash})
        self.start_unmerged()

    def discard_backup(self) -> None:
        """Forget the originals: what is merged stays merged."""
        self._stash = {}

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """The base layer, with adapters merged or not; the backup of the weights is discarded. Called by PEFT."""
        if merge:
            self.merge(safe_merge=safe_merge, adapter_names=adapter_names)
            self.discard_backup()
        elif self.merged:
            self.unmerge()
        stay_in_memory(self)
        return self.base_layer
