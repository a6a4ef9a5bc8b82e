"""Real adapters, spoilt in ways that a bad disk, a broken download, an editor or an enemy would."""

from __future__ import annotations

import json
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.support.producers import Produced

Tensors = dict[str, Tensor]
ODD: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 7, 2**31, 2**63, 2**70, 0.5, -0.5, 1e-300, 1e300, float("nan"), float("inf"),
    "", "in", "out", "OFT", "lin", "0.18.0", "x" * 3000, "../up", "\x1b[2J", "(a+)+$", [], [None], ["lin"], [1], {},
    {"lin": 2}, {"lin": {"side": "out"}}, {"lin": {"exact": False, "terms": 3}}, {"": {}}, [[]], {"a": [{}]},
]  # fmt: skip
FIELDS = [
    "scaled", "side", "magnitude", "coft", "eps", "r", "num_cayley_neumann_terms", "peft_version", "layer_settings",
    "neumann_series", "block_share", "rank_pattern", "block_size_pattern", "target_parameters", "modules_to_save",
    "layers_to_transform", "layers_pattern", "exclude_modules", "target_modules", "bias", "init_weights", "peft_type",
    "format_version", "oft_block_size", "use_cayley_neumann", "fan_in_fan_out", "module_dropout", "auto_mapping",
    "inference_mode", "task_type", "base_model_name_or_path", "runtime_config", "__class__", "transforms", "surprise",
]  # fmt: skip


def mutated(case: Produced, draw: random.Random, folder: Path) -> tuple[Path, str]:
    """A spoilt copy of an adapter in ``folder``, and what was done to it."""
    weights = case.adapter / "adapter_model.safetensors" if case.adapter.is_dir() else case.adapter
    target = folder / weights.name
    done = []
    kind = draw.choice(["bytes", "bytes", "header", "tensors", "tensors", "config", "config", "both"])
    if kind == "bytes":
        raw, what = _bytes(bytearray(weights.read_bytes()), draw)
        target.write_bytes(raw)
        done.append(what)
    elif kind == "header":
        raw, what = _header(weights.read_bytes(), draw)
        target.write_bytes(raw)
        done.append(what)
    elif kind in ("tensors", "both"):
        tensors = load_file(weights)
        done += [_tensors(tensors, draw) for _ in range(draw.randint(1, 3))]
        tensors.pop("__metadata__", None)
        save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, target)
    else:
        shutil.copy(weights, target)
    if case.adapter.is_dir():
        path = folder / "adapter_config.json"
        text = (case.adapter / path.name).read_text()
        if kind in ("config", "both"):
            text, what = _config(text, draw)
            done.append(what)
        path.write_text(text)
        return folder, "; ".join(done)
    return target, "; ".join(done)


def _bytes(raw: bytearray, draw: random.Random) -> tuple[bytes, str]:
    how = draw.choice(["flip", "flip", "cut", "longer", "zeros", "doubled"])
    header = 8 + struct.unpack("<Q", raw[:8])[0]
    if how == "flip":
        places = [
            draw.randrange(8 if draw.random() < 0.1 else header if draw.random() < 0.5 else len(raw)) for _ in "ab"
        ]
        for place in places:
            raw[place] ^= 1 << draw.randrange(8)
        return bytes(raw), f"bits flipped in bytes {places} (header: {header})"
    at = draw.randrange(len(raw))
    if how == "cut":
        return bytes(raw[:at]), f"cut at {at}"
    if how == "zeros":
        raw[at : at + 64] = bytes(len(raw[at : at + 64]))
        return bytes(raw), f"zeros from {at}"
    return bytes(raw + (raw if how == "doubled" else b"\0" * draw.randint(1, 9))), how


def _header(raw: bytes, draw: random.Random) -> tuple[bytes, str]:
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length])
    name = draw.choice([key for key in header if key != "__metadata__"])
    entry = header[name]
    key = draw.choice(["dtype", "shape", "data_offsets"])
    values: dict[str, list[Any]] = {
        "dtype": ["F16", "F64", "I32", "BF16", "F8_E4M3", "X", 3, None],
        "shape": [[], [0], [1 << 40], [1 << 62, 4], [-1], entry["shape"][::-1], [*entry["shape"], 1], "x"],
        "data_offsets": [[0, 0], [0], [-8, 8], [8, 0], [0, 1 << 60], entry["data_offsets"][::-1], None],
    }
    value = draw.choice(values[key])
    entry[key] = value
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + raw[8 + length :], f"{key} of {name} in the header = {value}"


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "flat": torch.flatten,
    "mirrored": lambda t: t.mT if t.dim() > 1 else t,
    "deeper": lambda t: t.unsqueeze(0),
    "shallower": lambda t: t[0] if t.dim() and t.shape[0] else t,
    "cropped": lambda t: t[..., :-1] if t.dim() else t,
    "fewer rows": lambda t: t[:-1] if t.dim() else t,
    "empty": lambda t: t.flatten()[:0],
    "huge": lambda t: t.float() * 1e30 if t.is_floating_point() else t,
    "large": lambda t: t.float() * 1e3 if t.is_floating_point() else t,
    "zero": torch.zeros_like,
    "half": lambda t: t.half() if t.is_floating_point() else t,
    "double": lambda t: t.double() if t.is_floating_point() else t,
    "whole": lambda t: t.long(),
    "complex": lambda t: t.to(torch.complex64),
    "nan": lambda t: t.float() * float("nan") if t.is_floating_point() else t,
    "negative": lambda t: -t if t.is_floating_point() else t,
}


def _tensors(tensors: Tensors, draw: random.Random) -> str:
    names = sorted(tensors)
    if not names:
        return "nothing left"
    name, other = draw.choice(names), draw.choice(names)
    how = draw.choice(["swap", "drop", "rename", "again", *CHANGES])
    if how == "swap":
        tensors[name], tensors[other] = tensors[other], tensors[name]
    elif how == "drop":
        del tensors[name]
    elif how == "again":
        tensors[draw.choice(["x.", "base_model.model.", "blk.", "a\0b."]) + name] = tensors[name].clone()
    elif how == "rename":
        tensors[draw.choice(["x", "lin", "", "\u202e", "a" * 2000]) + "." + name.rpartition(".")[2]] = tensors.pop(name)
    else:
        tensors[name] = CHANGES[how](tensors[name])
    return f"{how} {name}" + (f" with {other}" if how == "swap" else "")


def _config(text: str, draw: random.Random) -> tuple[str, str]:
    if draw.random() < 0.1:
        at = draw.randrange(len(text))
        how = draw.choice(["cut", "flip"])
        return (
            (text[:at], "config cut") if how == "cut" else (text[:at] + chr(draw.randrange(256)) + text[at + 1 :], how)
        )
    config = json.loads(text)
    done = []
    for _ in range(draw.randint(1, 2)):
        field = draw.choice([*config, *FIELDS])
        if draw.random() < 0.15:
            config.pop(field, None)
            done.append(f"no {field}")
        else:
            config[field] = draw.choice(ODD)
            done.append(f"{field} = {str(config[field])[:40]!r}")
    return json.dumps(config), " and ".join(done)
