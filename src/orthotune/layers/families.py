"""Which layers of a model get one and the same input, told by their names."""

from __future__ import annotations

from torch import nn

from orthotune.layers.linear import Linear
from orthotune.layers.shared_input import SharedInput

#: children of one module that get its input together, in calling order
FAMILIES = (
    ("q_proj", "k_proj", "v_proj"),  # Llama, Mistral, Qwen, Gemma, OPT, CLIP
    ("to_q", "to_k", "to_v"),  # diffusers
    ("add_q_proj", "add_k_proj", "add_v_proj"),  # diffusers' joint attention
    ("query", "key", "value"),  # BERT, ViT
    ("q_lin", "k_lin", "v_lin"),  # DistilBERT
    ("q", "k", "v"),  # T5
    ("gate_proj", "up_proj"),  # Llama's feed-forward
    ("w1", "w3"),  # experts of Mixtral
    ("wi_0", "wi_1"),  # T5 1.1
)


def share_inputs(model: nn.Module, name: str) -> None:
    """Let the layers of adapter ``name`` that get one input turn it together, see :class:`SharedInput`.

    Together are neighbours of :data:`FAMILIES` whose rotations have one shape, without the query where the module says
    that it is cross-attention (``is_cross_attention`` of diffusers). Every other layer is on its own.
    """
    alone = {module for module in model.modules() if isinstance(module, Linear) and _turns_input(module, name)}
    for parent in model.modules():
        children = dict(parent.named_children())
        for family in FAMILIES:
            found = [children.get(child) for child in family]
            if getattr(parent, "is_cross_attention", False):
                found[0] = None
            layers = [layer for layer in found if isinstance(layer, Linear) and layer in alone]
            together = [layer for layer in layers if _alike(layer, layers[-1], name)]
            if len(together) > 1:
                alone.difference_update(together)
                SharedInput(together, name)
    for layer in alone:
        SharedInput([layer], name)


def _turns_input(layer: Linear, name: str) -> bool:
    return name in layer.oft_settings and layer.oft_settings[name].spec.side == "in" and name in layer.oft_R


def _alike(one: Linear, other: Linear, name: str) -> bool:
    a, b = one.oft_R[name], other.oft_R[name]
    return (a.layout, a.map, a.copies) == (b.layout, b.map, b.copies)
