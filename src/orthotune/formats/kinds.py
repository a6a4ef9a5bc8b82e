"""Which kind of layer can be written for which tool, and why not: the conversion table, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from orthotune.formats.adapter_state import LayerState
from orthotune.rotation.butterfly import Butterfly
from orthotune.rotation.frozen import FrozenMap, SplitRows
from orthotune.rotation.spec import Side

Verdict = Literal["lossless", "approximate", "impossible"]

EXACT_IN, EXACT_OUT = "in exact", "out exact"
SERIES, LEGACY, OTHER_SERIES = "in neumann", "in neumann_legacy", "in neumann of another length"
SCALED = " with scaled rows"
OTHER_EMBEDDING = "embedding with a scale or the series of PEFT 0.16"
SERIES_IN = {SERIES, LEGACY, OTHER_SERIES}
SERIES_OUT = {kind.replace("in ", "out ", 1) for kind in SERIES_IN}


@dataclass(frozen=True)
class Target:
    """What one format can hold.

    Attributes:
        tool: who loads it.
        lossless: kinds of layers that it holds as they are.
        approximate: kinds that it holds nearly, on demand.
        side: on which side it turns; None for both.
        conv_reversed: whether the tool turns convolutions the other way than linear layers.
        folder: written as a folder with a config, and not as one file.
        shared: whether one stored block can stand for all.
        scale: whether every layer has a scale of its rows; a layer without one gets ones.
        scale_dims: whether the shape of a scale tells convolutions from linear layers.
    """

    tool: str
    lossless: frozenset[str]
    approximate: frozenset[str] = frozenset()
    side: Side | None = "in"
    conv_reversed: bool = False
    folder: bool = False
    shared: bool = False
    scale: bool = False
    scale_dims: bool = False


def _kinds(*kinds: str | set[str]) -> frozenset[str]:
    return frozenset(kind for group in kinds for kind in ([group] if isinstance(group, str) else group))


_ANY_MAP = {EXACT_IN, EXACT_OUT, *SERIES_IN, *SERIES_OUT}
_OUT_BLOCKS = _kinds(EXACT_OUT, EXACT_OUT + SCALED, "out butterfly")
_IN_SCALE = _kinds(EXACT_IN, EXACT_IN + SCALED)

TARGETS: dict[str, Target] = {
    "orthotune": Target(
        "orthotune", _kinds(_ANY_MAP, {kind + SCALED for kind in _ANY_MAP}, "embedding", OTHER_EMBEDDING, "packed"),
        side=None, folder=True, shared=True,
    ),
    "peft": Target(
        "PEFT 0.18 and later", _kinds(EXACT_IN, SERIES, OTHER_SERIES, "embedding"), _kinds(LEGACY), folder=True,
        shared=True,
    ),
    "peft-0.16": Target("PEFT 0.16 and 0.17", _kinds(EXACT_IN, LEGACY), folder=True, shared=True),
    "peft-0.14": Target("PEFT 0.14 and 0.15", _IN_SCALE, _kinds(SERIES_IN), folder=True, shared=True, scale=True),
    "peft-0.8": Target("PEFT 0.8 to 0.13", _kinds(EXACT_OUT, "ragged"), _kinds(SERIES_OUT), "out", folder=True),
    "peft-boft": Target(
        "PEFT's BOFT since 0.14", _IN_SCALE | {"in butterfly"}, _kinds(SERIES_IN), folder=True, scale=True,
        scale_dims=True,
    ),
    "kohya-boft": Target("sd-scripts networks.boft", _IN_SCALE | {"in butterfly"}, _kinds(SERIES_IN), scale=True),
    "kohya-oft-v2": Target(
        "sd-scripts networks.oft_v2", _kinds(SERIES), _kinds(EXACT_IN, LEGACY, OTHER_SERIES), conv_reversed=True,
        shared=True,
    ),
    "onetrainer": Target(
        "OneTrainer OFT_2, and ComfyUI-OFTv2", _kinds(SERIES), _kinds(EXACT_IN, LEGACY, OTHER_SERIES),
        conv_reversed=True, shared=True,
    ),
    "kohya-oft": Target("sd-scripts networks.oft", _kinds(EXACT_OUT), _kinds(SERIES_OUT), "out"),
    "lycoris": Target("LyCORIS 3.0 and later", _OUT_BLOCKS, _kinds(SERIES_OUT), "out", scale_dims=True),
    "comfyui": Target("ComfyUI", _OUT_BLOCKS, _kinds(SERIES_OUT), "out", scale_dims=True),
}  # fmt: skip

#: The one target that is no adapter: what each weight gains, for one base.
DIFF = "diff"

DENSE = f"Store the change of one base's weights instead: --to {DIFF} --base MODEL"
SIDE = (
    "a rotation of the input is another transform than one of the output: with distinct singular values no rotation "
    "but the identity is both"
)
SCALE = "the format has no place for a scale of the rows"
SERIES_REASON = "the format's map is another one, and no stored numbers give the same matrix"
WHY: dict[str, str] = {
    "in butterfly": "the product of butterfly stages is not block-diagonal",
    "out butterfly": "the product of butterfly stages is not block-diagonal",
    "scrambled": "the convolution is turned in the order of its memory, which no other format does",
    "ragged": "blocks that are cut at the edge of the weight are no rotations",
    "finished": "no skew matrix stands for the stored one: it turns by pi, or scales before it turns",
    "split rows": "the parts of the fused weight have blocks of several sizes",
    "packed": "the rotations of a packed layer have no name in the format",
    "embedding": "the format knows no embeddings",
    OTHER_EMBEDDING: "the format knows no such embeddings",
}


def kind_of(layer: FrozenMap) -> str:
    """The kind of a layer, as the table has it.

    Example:
        >>> import torch
        >>> from orthotune.rotation.spec import RotationSpec
        >>> kind_of(LayerState({"": torch.zeros(2, 3)}, RotationSpec(map="neumann")))
        'in neumann'
    """
    if isinstance(layer, Butterfly):
        return "scrambled" if layer.scrambled else f"{layer.side} butterfly"
    if isinstance(layer, SplitRows):
        return "split rows"
    if not isinstance(layer, LayerState):
        return "finished"
    if set(layer.rotations) != {""}:
        return "packed"
    spec = layer.spec
    if layer.embedding:
        return "embedding" if layer.magnitude is None and spec.map != "neumann_legacy" else OTHER_EMBEDDING
    kind = f"{spec.side} {spec.map}"
    if spec.map == "neumann" and spec.terms != 5:
        kind += " of another length"
    return kind if layer.magnitude is None or bool((layer.magnitude == 1).all()) else kind + SCALED


def verdict(kind: str, target: str) -> tuple[Verdict, str]:
    """Whether a kind of layer can be written for a target, and the reason if it cannot as it is.

    Example:
        >>> verdict("in exact", "lycoris")[0], verdict("out exact", "lycoris")
        ('impossible', ('lossless', ''))
    """
    can = TARGETS[target]
    if kind in can.lossless:
        return "lossless", ""
    if kind in can.approximate:
        return "approximate", SERIES_REASON
    if can.side and kind.startswith("out " if can.side == "in" else "in "):
        return "impossible", SIDE
    if kind in WHY:
        return "impossible", WHY[kind]
    return "impossible", SCALE if kind.endswith(SCALED) else SERIES_REASON
