"""Which layer kind serves which module."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers.pytorch_utils import Conv1D

from orthotune.errors import UnsupportedLayerError
from orthotune.layers.attention import AttentionOutput, MultiheadAttention
from orthotune.layers.base import OFTLayer
from orthotune.layers.conv import Conv, TransposedConv
from orthotune.layers.embedding import Embedding
from orthotune.layers.linear import Linear, TransposedLinear
from orthotune.layers.quantized_linear import QuantizedLinear
from orthotune.layers.settings import LayerSettings
from orthotune.quantized.registry import library_of

#: the first match counts, so a subclass comes before its base
KINDS: list[tuple[tuple[type[nn.Module], ...], type[OFTLayer]]] = [
    ((NonDynamicallyQuantizableLinear,), AttentionOutput),
    ((nn.Linear,), Linear),
    ((Conv1D,), TransposedLinear),
    ((nn.Conv1d, nn.Conv2d, nn.Conv3d), Conv),
    ((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), TransposedConv),
    ((nn.Embedding,), Embedding),
    ((nn.MultiheadAttention,), MultiheadAttention),
]


def kind_of(module: nn.Module, layer: str) -> type[OFTLayer]:
    """The layer kind for a base module.

    Raises:
        UnsupportedLayerError: no kind serves it; names the layer and what is served.

    Example:
        >>> kind_of(nn.Linear(2, 2), "q_proj").__name__
        'Linear'
    """
    if library_of(module) is not None:  # first: some of them are an nn.Linear too
        return QuantizedLinear
    for modules, kind in KINDS:
        if isinstance(module, modules):
            return kind
    served = ", ".join(cls.__name__ for modules, _ in KINDS for cls in modules)
    raise UnsupportedLayerError(
        f"layer '{layer}'",
        got=f"a {type(module).__module__}.{type(module).__name__}",
        needed=f"one of {served}",
        do="Name its inner layers in target_modules, or exclude it",
    )


def check_holds(kind: type[OFTLayer], settings: LayerSettings) -> None:
    """Refuse settings that a kind cannot hold, before a layer is made.

    Raises:
        UnsupportedLayerError: a frozen map for a kind that holds none; names the layer.

    Example:
        >>> from orthotune.rotation.spec import RotationSpec
        >>> check_holds(Linear, LayerSettings("q_proj", RotationSpec(block_size=8)))
    """
    if settings.frozen is not None:
        kind.check_frozen(settings)
