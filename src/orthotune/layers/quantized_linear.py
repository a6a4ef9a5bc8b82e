"""Linear layers of a quantized library: rotated like every linear layer, merged in float and quantized once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from orthotune.errors import MergeError
from orthotune.layers.base import CALLS, OFTLayer
from orthotune.layers.linear import Linear
from orthotune.layers.settings import LayerSettings
from orthotune.layers.through_quantizer import through_quantizer
from orthotune.quantized.contract import Library, Snapshot
from orthotune.quantized.dense import dense
from orthotune.quantized.gradient import attach, detach
from orthotune.quantized.registry import library_of

#: Rounding to the nearest number of the grid explains an error up to ``Library.rounding``; the grid's scales are
#: rounded themselves, to 16 bits, or to 8 with double quantization, which moves each number by a part of a step more.
SLACK = 1.25
#: A library may round the new weight to bfloat16 before and after: half a unit in the last place, 2**-9, twice.
SIXTEEN_BITS = 2**-8


class QuantizedLinear(Linear):
    """A layer that a library of ``quantized/registry.py`` claims.

    Merging rotates the dequantized weight in float32 and quantizes the result once, in the library's own mode. The
    quantized weight before is kept, so it is held twice while merged, and unmerging restores it bit for bit.
    """

    library: Library
    _before: Snapshot | None
    #: whether the adapted weight is quantized in every call, see :func:`orthotune.tuner.merge_aware.merge_aware`
    merge_aware: bool = False

    def prepare(self, settings: LayerSettings) -> None:
        base = self.get_base_layer()
        found = library_of(base)
        assert found is not None, "the registry of layers sends only claimed modules here"
        self.library = found
        if torch.get_default_device().type != "meta":  # there, it is only tried whether the adapter fits
            attach(base, found)

    @classmethod
    def check_frozen(cls, settings: LayerSettings) -> None:
        OFTLayer.check_frozen.__func__(cls, settings)  # type: ignore[attr-defined]

    def opaque(self) -> str | None:
        """Its forward is its library's, a linear map by the library's contract; hooks run around ours, see forward."""
        return None

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        base = self.base_layer
        if not (base._forward_hooks or base._forward_pre_hooks) or not self.in_use.adapters or kwargs:
            return self._adapted(x, *args, **kwargs)
        # Hooks see the original input and the final output once, because this forward replaces the library's.
        if torch.compiler.is_compiling():
            return self._hooked(x, args, self._adapted)
        with CALLS:
            return self._hooked(x, args, self._adapted)

    def _adapted(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.merge_aware and not (args or kwargs or self.merged_adapters) and self.in_use.adapters:
            if self.training and not torch.compiler.is_compiling():
                self._note_forward()
            with CALLS:
                return through_quantizer(self, x)
        return super().forward(x, *args, **kwargs)

    def _hooked(self, x: Tensor, args: tuple[Any, ...], own: Callable[..., Any]) -> Any:
        base = self.base_layer
        usual, hooks = base.__dict__.get("forward"), (base._forward_hooks, base._forward_pre_hooks)

        def inside(x: Tensor) -> Any:
            base._forward_hooks, base._forward_pre_hooks = type(hooks[0])(), type(hooks[1])()
            base.forward = usual
            try:
                return own(x, *args)
            finally:
                base._forward_hooks, base._forward_pre_hooks = hooks
                base.forward = inside

        base.forward = inside
        try:
            return base(x)
        finally:
            base.forward = usual

    def _call(self, args: tuple[Any, ...], kwargs: Any, adapters: tuple[str, ...] | None) -> Any:
        # The product with the dequantized, adapted weight: no library can run with a replaced weight.
        names = list(self.in_use.adapters if adapters is None else adapters)
        W = self.adapted(names)["weight"]
        return linear(args[0], W.to(args[0].dtype), self.library.bias(self.get_base_layer()))

    @property
    def weight(self) -> Tensor:
        """The stored parameters of the library, which cannot be read or rotated as a weight."""
        base = self.get_base_layer()
        return base.qweight if hasattr(base, "qweight") else base.weight

    def base_parameters(self) -> dict[str, nn.Parameter]:
        return {}

    def check_base(self, layer: str) -> None:
        """The registry has found its library already."""

    def device(self) -> torch.device:
        return self.library.device(self.get_base_layer())

    def _adapter_dtype(self) -> torch.dtype:
        return torch.float32

    def shapes(self) -> dict[str, torch.Size]:
        return {"": torch.Size(self.library.features(self.get_base_layer()))}

    def matrices(self) -> dict[str, Tensor]:
        return {"": self.library.dequantize(self.get_base_layer())}

    # Merging.

    @property
    def described(self) -> str:
        """The layer, its library and mode, for messages."""
        name = next(iter(self.slots.values())).settings.layer
        return f"layer '{name}' ({self.library.name}, {self.library.mode(self.get_base_layer())})"

    def start_unmerged(self) -> None:
        super().start_unmerged()
        self._before = None
        #: relative errors of the last merge: of quantizing anew, and of not merging at all
        self.merge_error: tuple[float, float] | None = None

    @contextmanager
    def unmerged(self) -> Iterator[dict[str, nn.Parameter]]:
        if self._before is None:
            yield {}
            return
        base, now = self.get_base_layer(), self.library.snapshot(self.get_base_layer())
        self._restore(self._before)
        try:
            yield {}
        finally:
            self.library.restore(base, now)

    def _restore(self, kept: Snapshot) -> None:
        base, device = self.get_base_layer(), self.device()
        self.library.restore(base, kept)
        if self.device() != device:  # the model has moved while merged
            base.to(device)

    def check_mergeable(self, adapters: list[str]) -> None:
        """Refuse what the library cannot quantize anew.

        Raises:
            MergeError: names the layer, the reason and the way out.
        """
        reason = self.library.cannot_merge(self.get_base_layer())
        if reason is not None:
            raise MergeError(
                f"Cannot merge OFT layers when the model is {self.library.name} quantized: {self.described}",
                got=reason,
                do="Merge into dense layers: merge_and_unload(dequantize=True), or `orthotune merge --dequantize`",
            )

    def _write(self, new: dict[str, Tensor], originals: dict[str, nn.Parameter]) -> None:
        base, weight = self.get_base_layer(), new["weight"]
        with self.unmerged():
            change = (weight - self.library.dequantize(base)).norm().item()
        before = self.library.snapshot(base)
        try:
            with torch.no_grad():
                self.library.requantize(base, weight)
                self.merge_error = self._verified(weight, change)
        except BaseException:
            self.library.restore(base, before)
            raise
        self._before = self._before or before

    def _verified(self, weight: Tensor, change: float) -> tuple[float, float]:
        base, size = self.get_base_layer(), max(weight.norm().item(), torch.finfo(torch.float32).tiny)
        error = (self.library.dequantize(base) - weight).norm().item() / size
        limit = SLACK * self.library.rounding(base, weight).norm().item() / size + SIXTEEN_BITS
        if not error <= limit:
            raise MergeError(
                f"merging into {self.described}",
                got=f"a stored weight at a relative distance of {error:.2g} from the rotated one",
                needed=f"at most {limit:.2g}, which rounding to the library's grid explains",
                do="Nothing was changed. Merge into a dense layer: merge_and_unload(dequantize=True)",
            )
        return error, change / size

    def rehearse(self, adapters: list[str], safe: bool = False) -> None:
        """Merge ``adapters`` and take it back, to find out whether it can be done.

        Raises:
            MergeError: it cannot.
        """
        base, before, merged = self.get_base_layer(), self._before, self.merged_adapters
        now = self.library.snapshot(base)
        try:
            self.merge(safe, adapters)
        finally:
            self.library.restore(base, now)
            self._before, self.merged_adapters = before, merged

    def unmerge(self) -> None:
        if self._before is not None:
            self._restore(self._before)
        self.start_unmerged()

    def discard_backup(self) -> None:
        self._before = None

    def dense(self, adapters: list[str], dtype: torch.dtype) -> nn.Linear:
        """A plain layer with what is merged already and ``adapters`` merged in float32, rounded to ``dtype`` once."""
        adapters = [name for name in [*self.merged_adapters, *adapters] if self.rotations(name)]
        with self.unmerged(), torch.no_grad():
            new = self.merged_parameters(list(dict.fromkeys(adapters))) if adapters else {}
            return dense(self.get_base_layer(), self.library, dtype, new.get("weight"))

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        base: Any = super().unload_and_optionally_merge_module(merge, safe_merge, adapter_names)
        detach(self.get_base_layer())
        return base
