"""Parameters that no module of their own holds: the stacked weights of mixture-of-experts layers."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from orthotune.errors import UnsupportedLayerError
from orthotune.layers.mixed_batch import refuse_mixed_batch
from orthotune.layers.settings import LayerSettings
from orthotune.layers.transparent import Transparent

#: classes that store (experts, in, out) without saying so in an attribute
INPUT_FIRST = {"Llama4TextExperts"}


class ParamWrapper(Transparent):
    """One parameter ``(experts, out, in)``, ``(experts, in, out)`` or ``(out, in)`` of a module, a rotation per expert.

    Several parameters of one module are wrapped one around another. The class name and ``parameter_name`` are what
    PEFT's host looks for when it adds a second adapter.
    """

    beyond_peft = "target_parameters"

    def __init__(
        self,
        base_layer: nn.Module,
        adapter_name: str,
        settings: LayerSettings,
        parameter_name: str,
        input_first: bool = False,
    ) -> None:
        object.__setattr__(self, "parameter_name", parameter_name)
        innermost = base_layer.get_base_layer() if isinstance(base_layer, ParamWrapper) else base_layer
        marked = getattr(innermost, "is_transposed", False) or type(innermost).__name__ in INPUT_FIRST
        object.__setattr__(self, "input_first", bool(input_first or marked))
        if getattr(innermost, parameter_name).dim() not in (2, 3):
            raise UnsupportedLayerError(
                f"parameter '{settings.layer}'",
                got=f"shape {tuple(getattr(innermost, parameter_name).shape)}",
                needed="(out, in), (experts, out, in) or (experts, in, out)",
                do="Leave it out of target_parameters",
            )
        super().__init__(base_layer, adapter_name, settings)

    @property
    def weight(self) -> Tensor:
        """The wrapped parameter, for device and dtype."""
        return getattr(self.get_base_layer(), self.parameter_name)

    def base_parameters(self) -> dict[str, nn.Parameter]:
        return {self.parameter_name: getattr(self.get_base_layer(), self.parameter_name)}

    def matrices(self) -> dict[str, Tensor]:
        weight = getattr(self.get_base_layer(), self.parameter_name)
        return {"": weight.mT if self.input_first else weight}

    def assemble(self, matrices: dict[str, Tensor]) -> dict[str, Tensor]:
        return {self.parameter_name: matrices[""].mT if self.input_first else matrices[""]}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        as_base = refuse_mixed_batch(self, kwargs)
        adapters = [] if as_base else self.adapters_in_use()
        if not adapters:
            return self.base_layer(*args, **kwargs)
        base, path = self.base_layer, ""
        while isinstance(base, ParamWrapper):
            base, path = base.base_layer, path + "base_layer."
        turned = {path + name: W.to(self.weight.dtype) for name, W in self.turned(adapters).items()}
        return functional_call(self.base_layer, turned, args, kwargs)

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """As for every layer, through all wrappers of the module."""
        base = super().unload_and_optionally_merge_module(merge, safe_merge, adapter_names)
        if isinstance(base, ParamWrapper):
            return base.unload_and_optionally_merge_module(merge, safe_merge, adapter_names)
        return base
