"""GPTQ layers of gptqmodel: integer codes that were fitted to calibration data (arXiv 2210.17323)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from orthotune.quantized.contract import class_paths
from orthotune.quantized.gptqmodel_kernels import ROOM, GptqmodelLibrary


class Gptq(GptqmodelLibrary):
    """Every GPTQ kernel of gptqmodel."""

    name = "gptq"
    classes = (ROOM + "GPTQQuantLinear",)
    understood = (ROOM + "torch.TorchLinear", ROOM + "torch_aten_kernel.TorchAtenLinear")
    no_merge = "codes that were fitted to calibration data, which rounding a rotated weight to new ones would undo"

    def claims(self, module: Any) -> bool:
        """Linear layers alone: the class of quantized embeddings inherits from a linear one."""
        return super().claims(module) and ROOM + "torch.TorchQuantEmbeddings" not in class_paths(type(module))

    def read(self, module: Any) -> Tensor:
        # The class's function: the layer's own attribute is compiled, which would cost more than it saves here.
        parts = max(1, len(module.g_idx) // module.in_features)
        weight: Tensor = type(module).dequantize_weight(module, num_itr=parts)
        return weight
