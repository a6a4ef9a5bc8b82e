"""Merging rotations into base weights, and taking them out again bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from orthotune.errors import MergeError


class Merging(BaseTunerLayer):
    """Merge and unmerge for a layer that has ``turned``, ``rotations`` and ``base_parameters``.

    The originals are kept while merged, so the weight is held twice; ``merge_and_unload`` keeps them only until the
    next layer. Adapters are always merged together from the originals and rounded to the base's dtype once.
    """

    # PEFT's mixin is not typed; nn.Module would answer for these with Tensor | Module.
    base_layer: Any
    get_base_layer: Callable[[], Any]
    active_adapters: Any
    set_adapter: Callable[..., None]

    def start_unmerged(self) -> None:
        """Nothing is merged yet; called once by the layer."""
        self.merged_adapters: list[str] = []
        self._stash: dict[str, nn.Parameter] = {}

    def original(self, name: str) -> nn.Parameter:
        """The base parameter as it was before any merge."""
        return self._stash.get(name, self.base_parameters()[name])

    def merged_parameters(self, adapters: list[str], safe: bool = False) -> dict[str, Tensor]:
        """New base parameters with ``adapters`` merged, in the base's dtype and memory format; writes nothing.

        Raises:
            MergeError: with ``safe``, a weight would become NaN or infinite; names layer, adapters and parameter.
        """
        with torch.no_grad():
            new = self.turned(adapters)
            for name, weight in new.items():
                new[name] = torch.empty_like(self.base_parameters()[name], requires_grad=False).copy_(weight)
                if safe and not torch.isfinite(new[name]).all():
                    raise MergeError(
                        f"merging {adapters} into layer '{self.oft_settings[adapters[0]].layer}'",
                        got=f"NaN or infinite values in the new {name}",
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
        wanted = [name for name in check_adapters_to_merge(self, adapter_names) or [] if self.rotations(name)]
        if not wanted:
            return
        self.check_mergeable(wanted)
        current = dict(self.base_parameters())
        originals = {name: self.original(name) for name in current}
        self._put(originals)
        try:
            new = self.merged_parameters([*self.merged_adapters, *wanted], safe_merge)
        except BaseException:  # out of memory or an interrupt too: never half merged
            self._put(current)
            raise
        self._stash = originals
        self._put({k: nn.Parameter(v, requires_grad=originals[k].requires_grad) for k, v in new.items()})
        self.merged_adapters = [*self.merged_adapters, *wanted]

    def _put(self, parameters: dict[str, nn.Parameter]) -> None:
        # A new Parameter, not a write in place: a weight tied to another module leaves that module alone.
        for name, parameter in parameters.items():
            owner, _, leaf = name.rpartition(".")
            setattr(self.get_base_layer().get_submodule(owner), leaf, parameter)

    def unmerge(self) -> None:
        """Put the original base parameters back, bit for bit; without effect when nothing is merged."""
        current = self.base_parameters()
        for name, parameter in self._stash.items():
            parameter.data = parameter.data.to(current[name])  # the model may have moved while merged
        self._put(self._stash)
        self.start_unmerged()

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """The base layer alone, with adapters merged or not; the originals are let go. Called by PEFT's host."""
        if merge:
            self.merge(safe_merge=safe_merge, adapter_names=adapter_names)
            self._stash = {}
        elif self.merged:
            self.unmerge()
        return self.base_layer
