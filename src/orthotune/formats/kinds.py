"""The kinds of layers that formats hold or do not hold, and why a kind cannot be written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from orthotune.rotation.frozen import FrozenMap

Verdict = Literal["lossless", "approximate", "impossible"]

EXACT_IN, EXACT_OUT = "in exact", "out exact"
SERIES, LEGACY, OTHER_SERIES = "in neumann", "in neumann_legacy", "in neumann of another length"
SCALED = " with scaled rows"
IN_BUTTERFLY, OUT_BUTTERFLY = "in butterfly", "out butterfly"
EMBEDDING, PACKED, RAGGED = "embedding", "packed", "ragged"
OTHER_EMBEDDING = "embedding with a scale or the series of PEFT 0.16"

#: groups of kinds that several formats hold
SERIES_IN = frozenset({SERIES, LEGACY, OTHER_SERIES})
SERIES_OUT = frozenset(kind.replace("in ", "out ", 1) for kind in SERIES_IN)
ANY_MAP = frozenset({EXACT_IN, EXACT_OUT}) | SERIES_IN | SERIES_OUT
ANY_SCALED_MAP = frozenset(kind + SCALED for kind in ANY_MAP)
OUT_BLOCKS = frozenset({EXACT_OUT, EXACT_OUT + SCALED, OUT_BUTTERFLY})
IN_WITH_SCALE = frozenset({EXACT_IN, EXACT_IN + SCALED})

#: The one target that is no adapter: what each weight gains, for one base.
DIFF = "diff"

DENSE = f"Store the change of one base's weights instead: --to {DIFF} --base MODEL"
SIDE = (
    "a rotation of the input is another transform than one of the output: with distinct singular values no rotation "
    "but the identity is both"
)
SCALE = "the format has no place for a scale of the rows"
SERIES_REASON = "the format's map is another one, and no stored numbers give the same matrix"
REASONS: dict[str, str] = {
    IN_BUTTERFLY: "the product of butterfly stages is not block-diagonal",
    OUT_BUTTERFLY: "the product of butterfly stages is not block-diagonal",
    "scrambled": "the convolution is turned in the order of its memory, which no other format does",
    RAGGED: "blocks that are cut at the edge of the weight are no rotations",
    "finished": "no skew matrix stands for the stored one: it turns by pi, or scales before it turns",
    "split rows": "the parts of the fused weight have blocks of several sizes",
    PACKED: "the rotations of a packed layer have no name in the format",
    EMBEDDING: "the format knows no embeddings",
    OTHER_EMBEDDING: "the format knows no such embeddings",
}


def kind_of(layer: FrozenMap) -> str:
    """The kind of a layer, as the table has it.

    Example:
        >>> import torch
        >>> from orthotune.formats.adapter_state import LayerState
        >>> from orthotune.rotation.spec import RotationSpec
        >>> kind_of(LayerState({"": torch.zeros(2, 3)}, RotationSpec(map="neumann")))
        'in neumann'
    """
    # here, because the formats' declarations load without torch
    from orthotune.formats.adapter_state import LayerState
    from orthotune.rotation.butterfly import Butterfly
    from orthotune.rotation.frozen import SplitRows

    if isinstance(layer, Butterfly):
        return "scrambled" if layer.scrambled else f"{layer.side} butterfly"
    if isinstance(layer, SplitRows):
        return "split rows"
    if not isinstance(layer, LayerState):
        return "finished"
    if set(layer.rotations) != {""}:
        return PACKED
    spec = layer.spec
    if layer.embedding:
        return EMBEDDING if layer.magnitude is None and spec.map != "neumann_legacy" else OTHER_EMBEDDING
    kind = f"{spec.side} {spec.map}"
    if spec.map == "neumann" and spec.terms != 5:
        kind += " of another length"
    return kind if layer.magnitude is None or bool((layer.magnitude == 1).all()) else kind + SCALED
