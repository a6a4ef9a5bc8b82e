"""Translate the module names of a Stable Diffusion UNet between the original (LDM) checkpoints and diffusers.

There is no table per model: the blocks in the names are counted, so that a UNet of any depth is supported.
Source: CompVis/latent-diffusion ``openaimodel.py`` and diffusers ``UNet2DConditionModel``, module for module.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

#: diffusers -> LDM, outside the blocks
_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
#: diffusers -> LDM, inside a block of each kind; other kinds have the same names in both
_INSIDE = {
    "resnets": {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
    },
    "downsamplers": {"conv": "op"},
}
_DIFFUSERS = re.compile(r"((?:down_blocks|up_blocks)\.\d+|mid_block)\.([a-z]+)\.(\d+)\.(.+)")
_LDM = re.compile(r"((?:input|output)_blocks\.\d+|middle_block)\.(\d+)\.(.+)")


def ldm_names(names: Iterable[str]) -> dict[str, str]:
    """Module names of diffusers -> LDM names of the same modules; names that belong to no UNet are skipped.

    Example:
        >>> ldm_names(["conv_in", "down_blocks.0.resnets.0.conv1"])["down_blocks.0.resnets.0.conv1"]
        'input_blocks.1.0.in_layers.2'
    """
    names = list(names)
    parts = [found.groups() for name in names if (found := _DIFFUSERS.fullmatch(name))]
    places = _places({(stage, kind, int(index)) for stage, kind, index, _ in parts})
    pairs = {name: _ENDS[name] for name in names if name in _ENDS}
    for stage, kind, index, rest in parts:
        place = places.get((stage, kind, int(index)))
        inside = _INSIDE.get(kind)
        rest_there = rest if inside is None else inside.get(rest)
        if place is not None and rest_there is not None:
            pairs[f"{stage}.{kind}.{index}.{rest}"] = f"{place}.{rest_there}"
    return pairs


def _places(blocks: set[tuple[str, str, int]]) -> dict[tuple[str, str, int], str]:
    """Block of a diffusers UNet -> LDM name."""
    found: dict[tuple[str, str, int], str] = {
        ("mid_block", "resnets", 0): "middle_block.0",
        ("mid_block", "attentions", 0): "middle_block.1",
        ("mid_block", "resnets", 1): "middle_block.2",
    }
    for side, ldm, number in (("down_blocks", "input_blocks", 1), ("up_blocks", "output_blocks", 0)):
        for index in range(1 + max((int(b[0].split(".")[1]) for b in blocks if b[0].startswith(side)), default=-1)):
            stage = f"{side}.{index}"
            layers = sum((stage, "resnets", j) in blocks for j in range(len(blocks)))
            for j in range(layers):
                found[stage, "resnets", j] = f"{ldm}.{number}.0"
                found[stage, "attentions", j] = f"{ldm}.{number}.1"
                if side == "up_blocks" and j == layers - 1:  # comes after the modules of the last layer
                    after = 2 if (stage, "attentions", j) in blocks else 1
                    found[stage, "upsamplers", 0] = f"{ldm}.{number}.{after}"
                number += 1
            if (stage, "downsamplers", 0) in blocks:
                found[stage, "downsamplers", 0] = f"{ldm}.{number}.0"
                number += 1
    return {block: place for block, place in found.items() if block in blocks}


def diffusers_names(names: Iterable[str]) -> dict[str, str]:
    """LDM module names -> diffusers names of the same modules; names that belong to no UNet are skipped.

    Example:
        >>> diffusers_names(["input_blocks.0.0", "input_blocks.1.0.in_layers.2"])["input_blocks.1.0.in_layers.2"]
        'down_blocks.0.resnets.0.conv1'
    """
    names = list(names)
    parts: dict[tuple[str, int], list[str]] = {}
    for name in names:
        if found := _LDM.fullmatch(name):
            parts.setdefault((found[1], int(found[2])), []).append(found[3])
    pairs = {ldm: name for name, ldm in _ENDS.items() if ldm in set(names)}
    for (stage, place), block in _blocks(parts).items():
        kind = block.split(".")[-2]
        back = {there: here for here, there in _INSIDE.get(kind, {}).items()}
        for rest in parts[stage, place]:
            here = back.get(rest) if back else rest
            if here is not None:
                pairs[f"{stage}.{place}.{rest}"] = f"{block}.{here}"
    return pairs


def _blocks(parts: dict[tuple[str, int], list[str]]) -> dict[tuple[str, int], str]:
    """Block of an LDM UNet -> diffusers name."""
    middle = ("mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1")
    found = {("middle_block", place): name for place, name in enumerate(middle)}
    for side, ldm in (("down_blocks", "input_blocks"), ("up_blocks", "output_blocks")):
        index = layer = 0
        count = 1 + max((int(s.split(".")[1]) for s, _ in parts if s.startswith(ldm)), default=-1)
        for number in range(count):
            stage, ends = f"{ldm}.{number}", False
            for place in range(3):
                inside = parts.get((stage, place), [])
                if any(rest.startswith(("in_layers", "out_layers")) for rest in inside):
                    found[stage, place] = f"{side}.{index}.resnets.{layer}"
                elif "op" in inside or "conv" in inside:
                    ends = True
                    kind = "downsamplers" if "op" in inside else "upsamplers"
                    found[stage, place] = f"{side}.{index}.{kind}.0"
                elif any(rest.startswith(("proj_in", "transformer_blocks")) for rest in inside):
                    found[stage, place] = f"{side}.{index}.attentions.{layer}"
            layer += (stage, 0) in found
            if ends:
                index, layer = index + 1, 0
    return {key: block for key, block in found.items() if key in parts}
