"""What the layers of gptqmodel have in common, GPTQ and AWQ alike: a kernel class, bits, groups, and when they pack."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from orthotune.quantized.contract import Library, class_paths
from orthotune.quantized.identity import through_identity

#: where the kernels' classes are
ROOM = "gptqmodel.nn_modules.qlinear."


class GptqmodelLibrary(Library):
    """A method whose kernels are of gptqmodel 7.

    Kernels whose storage is known are read from it, all others (Marlin, ExLlama, ...) through the identity. The layers'
    own backward is not used: it keeps the dequantized weight of every layer until then, and most kernels have none.
    """

    #: classes whose stored codes :meth:`read` understands
    understood: tuple[str, ...] = ()

    def mode(self, module: Any) -> str:
        return f"{module.bits} bit, groups of {module.group_size}, {type(module).__name__}"

    def prepare(self, module: Any) -> None:
        """On a CPU some kernels pack their weight in the first evaluation pass, with coarser scales: not while adapted.

        Evaluation on a CPU is as slow as gptqmodel's plain torch kernel then.
        """
        if getattr(module, "linear_mode", "none") is None:
            module.linear_mode = "train"

    def dequantize(self, module: Any) -> Tensor:
        if self.understands(module) and not packed(module):
            return self.read(module).detach().T.float().contiguous()

        # Taking the bias off the outputs would round the weight to the size of the bias.
        bias, module.bias = module.bias, None
        try:
            return through_identity(
                lambda x: type(module).forward(module, x),
                self.features(module), kernel_dtype(module), self.device(module),
            )  # fmt: skip
        finally:
            module.bias = bias

    def understands(self, module: Any) -> bool:
        """Whether the storage is one that :meth:`read` knows; a class that inherits may store other things."""
        return class_paths(type(module))[0] in self.understood

    def read(self, module: Any) -> Tensor:
        """The weight ``(in, out)`` in the kernel's dtype."""
        raise NotImplementedError


def packed(module: Any) -> bool:
    """Whether an evaluation pass, before an adapter came, has replaced the stored weight by a packed one."""
    return str(getattr(module, "linear_mode", None)).rpartition(".")[2].lower() == "inference"


def kernel_dtype(module: Any) -> torch.dtype:
    """The dtype in which a kernel computes."""
    dtype = getattr(getattr(module, "scales", None), "dtype", None)
    return dtype if dtype in (torch.float16, torch.bfloat16) else torch.float16
