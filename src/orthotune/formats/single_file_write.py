"""Adapters in one file without a config: OneTrainer, sd-scripts ``oft_v2`` and ``boft``."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from orthotune.files.safetensors_file import write_tensors
from orthotune.formats.adapter_state import AdapterState
from orthotune.formats.codecs.boft_r_write import boft_tensors
from orthotune.formats.codecs.written_header import header, kohya_hash
from orthotune.formats.names.spelling import spelled

#: What ``ss_network_module`` says; OneTrainer writes none.
MODULES = {"kohya-oft-v2": "networks.oft_v2", "kohya-boft": "networks.boft", "onetrainer": None}


def write(state: AdapterState, out: Path, target: str) -> Path:
    """One file of ``oft_R.weight``, or of ``boft_R`` and ``boft_s``.

    Raises:
        UnsupportedLayerError: a layer is of another kind, or has a name that the tool does not know.
        OutputError: the file cannot be written.
    """
    names = spelled([*state.layers, *state.transforms], target)
    if target == "kohya-boft":
        tensors = boft_tensors(state, names, conv_row=False)
        sizes = [tensor.shape[-1] for name, tensor in tensors.items() if name.endswith(".boft_R")]
    else:
        tensors = {f"{names[name]}.oft_R.weight": layer.vector() for name, layer in state.layers.items()}
        sizes = [layer.block_size() for layer in state.layers.values()]
    return write_tensors(out, tensors, _metadata(state, tensors, target, max(sizes)))


def _metadata(state: AdapterState, tensors: dict[str, Tensor], target: str, size: int) -> dict[str, str]:
    module = MODULES[target]
    found = header(state.metadata, module, size, {})
    if module is None:
        found.setdefault("modelspec.sai_model_spec", "1.0.0")
        return found
    return found | {"sshs_model_hash": kohya_hash(tensors)}
