"""The kinds of layers, for deciding which formats can hold them, and the reasons why a kind cannot be written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from orthotune.rotation.frozen import FrozenMap

Verdict = Literal["lossless", "approximate", "impossible"]

EXACT_IN, EXACT_OUT = "in exact", "out exact"
SERIES, LEGACY, OTHER_SERIES = "in neumann", "in neumann_legacy", "in neumann of another length"
SCALED = " with scaled rows"
IN_BUTTERFLY, OUT_BUTTERFLY = "in butterfly", "out butterfly"
EMBEDDING, PACKED, TRUNCATED = "embedding", "packed", "truncated blocks"
OTHER_EMBEDDING = "embedding with a scale or the series of PEFT 0.16"
#: transforms other than blocks, which are trained
FAMILY_NAMES = ("reflections", "planes", "givens", "subspace", "hyperplane")
IN_REFLECTIONS, OUT_PLANES, IN_SUBSPACE = "in reflections", "out planes", "in subspace"
OUT_STAGES = "out butterfly in the order of PEFT"

#: groups of kinds that several formats hold
SERIES_IN = frozenset({SERIES, LEGACY, OTHER_SERIES})
SERIES_OUT = frozenset(kind.replace("in ", "out ", 1) for kind in SERIES_IN)
ANY_MAP = frozenset({EXACT_IN, EXACT_OUT}) | SERIES_IN | SERIES_OUT
ANY_SCALED_MAP = frozenset(kind + SCALED for kind in ANY_MAP)
OUT_BLOCKS = frozenset({EXACT_OUT, EXACT_OUT + SCALED, OUT_BUTTERFLY})
IN_WITH_SCALE = frozenset({EXACT_IN, EXACT_IN + SCALED})

FAMILY_EMBEDDING = "embedding of a transform other than blocks"
FAMILY_KINDS = frozenset(
    f"{side} {name}{end}" for side in ("in", "out") for name in FAMILY_NAMES for end in ("", SCALED)
)
FAMILY_KINDS |= {FAMILY_EMBEDDING, OUT_STAGES}

#: The target that is not an adapter: the difference of each weight, for one base.
DIFF = "diff"

DENSE = f"Store the change of the weights of one base instead: --to {DIFF} --base MODEL"
SIDE = (
    "a rotation of the inputs cannot be written as a rotation of the outputs: for a weight with distinct singular "
    "values, only the identity is both"
)
SCALE = "the format cannot hold a scale of the rows"
SERIES_REASON = "the format uses another map, for which no parameters give the same matrix"
REASONS: dict[str, str] = {
    IN_BUTTERFLY: "the product of butterfly stages is not block-diagonal",
    OUT_BUTTERFLY: "the product of butterfly stages is not block-diagonal",
    "legacy convolution": "the convolution is rotated in its legacy memory layout, which no other format uses",
    TRUNCATED: "blocks that are truncated at the edge of the weight are not rotations",
    "dense blocks": "the stored matrix has no skew-symmetric matrix: it rotates by pi, or scales before it rotates",
    "split rows": "the parts of the fused weight have blocks of several sizes",
    PACKED: "the format has no names for the rotations of a packed layer",
    EMBEDDING: "the format has no embeddings",
    OTHER_EMBEDDING: "the format has no such embeddings",
    FAMILY_EMBEDDING: "the format has no such embeddings",
} | {kind: f"the format has no transform '{kind.split()[1]}'" for kind in FAMILY_KINDS - {FAMILY_EMBEDDING}}


def kind_of(layer: FrozenMap) -> str:
    """The kind of a layer.

    Example:
        >>> import torch
        >>> from orthotune.formats.adapter_state import LayerState
        >>> from orthotune.rotation.spec import RotationSpec
        >>> kind_of(LayerState({"": torch.zeros(2, 3)}, RotationSpec(map="neumann")))
        'in neumann'
    """
    # imported here, so that the declarations of formats load without torch
    from orthotune.formats.adapter_state import LayerState
    from orthotune.rotation.butterfly import Butterfly
    from orthotune.rotation.family import FamilyTransform
    from orthotune.rotation.frozen import SplitRows

    if isinstance(layer, Butterfly):
        return "legacy convolution" if layer.legacy_conv else f"{layer.side} butterfly"
    if isinstance(layer, FamilyTransform):
        if layer.embedding:
            return FAMILY_EMBEDDING
        if layer.spec.transform == "butterfly":  # its formats have a scale in every layer
            return IN_BUTTERFLY if layer.side == "in" else OUT_STAGES
        scaled = layer.magnitude is not None and not bool((layer.magnitude == 1).all())
        return f"{layer.side} {layer.spec.transform}{SCALED if scaled else ''}"
    if isinstance(layer, SplitRows):
        return "split rows"
    if not isinstance(layer, LayerState):
        return "dense blocks"
    if set(layer.rotations) != {""}:
        return PACKED
    spec = layer.spec
    if layer.embedding:
        return EMBEDDING if layer.magnitude is None and spec.map != "neumann_legacy" else OTHER_EMBEDDING
    kind = f"{spec.side} {spec.map}"
    if spec.map == "neumann" and spec.terms != 5:
        kind += " of another length"
    return kind if layer.magnitude is None or bool((layer.magnitude == 1).all()) else kind + SCALED
