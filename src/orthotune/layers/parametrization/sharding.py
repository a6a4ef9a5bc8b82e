"""Sharded parameters (FSDP2, ZeRO-3, tensor parallel), which a process holds in full only during a forward."""

from __future__ import annotations

import warnings
from typing import Any, cast

import torch
from torch import Tensor, nn

from orthotune.errors import MergeError, OrthotuneError


def is_part(parameter: Tensor) -> bool:
    """Whether this process holds only a part of ``parameter`` now: a DTensor, or one that ZeRO-3 has put away.

    Example:
        >>> is_part(torch.zeros(2, 2))
        False
    """
    return hasattr(parameter, "to_local") or (is_zero(parameter) and not parameter.numel())


def is_zero(parameter: Tensor) -> bool:
    """Whether ZeRO-3 has ``parameter``: gathered when its own module is called, by all processes in one order.

    It has its entire shape before its numbers have come, so nobody but its module may read it.

    Example:
        >>> is_zero(torch.zeros(2, 2))
        False
    """
    return hasattr(parameter, "ds_id")


def refuse_parts(layer: str, parameters: dict[str, nn.Parameter]) -> None:
    """Refuse to merge into base parameters that are spread over processes.

    Raises:
        MergeError: names the layer and the way out.
    """
    for name, parameter in parameters.items():
        if is_part(parameter):
            raise cannot_merge(layer, f"of which this process holds a part only ({name})")


def cannot_merge(layer: str, held: str) -> MergeError:
    """The error for a weight that is sharded over processes."""
    return MergeError(
        f"merging into layer '{layer}'",
        got=f"a weight {held}",
        do="Nothing was changed. Save the adapter and merge it into the model's files: "
        "`orthotune merge ADAPTER --stream --base MODEL --out FOLDER`",
    )


class Exchanged(nn.Module):
    """A module whose ``weight`` FSDP2 exchanges: its shard, a DTensor, for the gathered parameter and back.

    FSDP2 writes what it gathers past the parameter's version and often to the same place in memory.
    """

    weight: nn.Parameter
    #: what the optimizer updates while ``weight`` is the gathered parameter; None without FSDP2
    shard: nn.Parameter | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        # FSDP2 goes through here because the method is overridden; otherwise it would write to _parameters itself.
        if name == "weight" and isinstance(value, Tensor):
            self._exchange(value)
        super().__setattr__(name, value)

    def _exchange(self, value: Tensor) -> None:
        before = self._parameters.get("weight")
        if before is None or not hasattr(before, "to_local") or hasattr(value, "to_local"):
            return
        object.__setattr__(self, "shard", before)
        if value.dtype in (torch.bfloat16, torch.float16) and value.dtype != before.dtype:
            warnings.warn(
                f"FSDP2's mixed precision rounds the parameters of rotations to {value.dtype} for every forward. "
                "Shard with a MixedPrecisionPolicy without param_dtype: the base may be in bfloat16 itself.",
                stacklevel=2,
            )

    def write_shard(self) -> None:
        """After a write to the gathered parameter: the same to this process's shard, without communication.

        Raises:
            OrthotuneError: the gathered parameter is rounded, so that its numbers cannot be written back.
        """
        shard = cast(Any, self.shard)
        if shard is None or self.weight is shard:
            return
        if shard.dtype != self.weight.dtype:
            raise OrthotuneError(
                "COFT under FSDP2's mixed precision",
                got=f"stored parameters rounded from {shard.dtype} to {self.weight.dtype} for the forward",
                do="Shard with a MixedPrecisionPolicy without param_dtype",
            )
        from torch.distributed.tensor import distribute_tensor

        with torch.no_grad():
            # Without a source every process takes its own part of what it has.
            own = distribute_tensor(self.weight.detach(), shard.device_mesh, shard.placements, src_data_rank=None)
            shard.to_local().copy_(own.to_local())
