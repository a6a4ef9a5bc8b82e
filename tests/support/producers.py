"""Every fixture: what the producing program computed, beside what its file gives here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import conv2d, linear

from orthotune.formats import AdapterState, ReadOptions, read_adapter
from orthotune.rotation.frozen import FrozenMap

FIXTURES = Path(__file__).parents[1] / "fixtures"


@dataclass(frozen=True)
class Produced:
    """One adapter that a program wrote, and the folder with what it computed."""

    folder: Path
    adapter: Path

    def __str__(self) -> str:
        return f"{self.producer}-{self.folder.name}-{self.adapter.stem.removeprefix('adapter')}".rstrip("-")

    @property
    def producer(self) -> str:
        return self.folder.parent.name

    @property
    def info(self) -> dict[str, Any]:
        return json.loads((self.folder / "info.json").read_text())

    @property
    def options(self) -> ReadOptions:
        """What the file does not say and a user must."""
        if self.producer == "onetrainer-oftv2-2025-11-14":
            eps = self.info["config"].get("coft_eps")
            return ReadOptions(series="legacy", coft=eps is not None, eps=eps and float(eps))
        if self.producer == "zeju-oft" and "t2i" not in self.folder.name:
            coft = self.info.get("is_coft", "conv" in self.folder.name)
            return ReadOptions(coft=coft, eps=self.info["eps"])
        return ReadOptions()

    def read(self) -> AdapterState:
        return read_adapter(self.adapter, self.options)


def produced() -> list[Produced]:
    """Every adapter of every fixture."""
    found = []
    for info in sorted(FIXTURES.glob("*/*/info.json")):
        files = sorted(info.parent.glob("adapter*.safetensors"))
        if (info.parent / "adapter_config.json").exists():
            found.append(Produced(info.parent, info.parent))
        else:
            found += [Produced(info.parent, path) for path in files]
    return found


def base_layer(name: str, case: Produced) -> str:
    """Which base of ``io.safetensors`` a layer turns."""
    if "flux" in case.producer or case.producer == "zeju-oft":
        return "conv" if name == "in_layers" else "lin"
    return next(base for base in ("conv", "lin", "emb") if base in name)


def comparisons(case: Produced) -> Iterator[tuple[str, Tensor, Tensor]]:
    """What is compared, what came out here, and what the program computed."""
    io, state = load_file(case.folder / "io.safetensors"), case.read()
    names = [*state.layers, *state.transforms]
    assert names
    for name in names:
        base, transform = base_layer(name, case), state.transform(name)
        if f"{base}.weight_merged" in io:
            yield f"{base}.weight_merged", transform.apply(io[f"{base}.weight"]), io[f"{base}.weight_merged"]
        folded = base == "conv" and state.format in ("peft-oft", "peft-oft-0.16")  # its own forward is another map
        for key, strength in ((f"{base}.y", 1.0), (f"{base}.y_merged", 1.0), (f"{base}.y_mult0.5", 0.5)):
            if key in io and not (folded and key == "conv.y"):
                yield key, _output(transform, io, base, strength, turns_bias(case)), io[key]


def turns_bias(case: Produced) -> bool:
    """These versions turned the output, bias included, where they did not merge; later loaders of the file do not."""
    return case.producer == "lycoris-3.1.1" or case.producer == "kohya-oft-2023-10"


def _output(transform: FrozenMap, io: dict[str, Tensor], base: str, strength: float, bias_too: bool) -> Tensor:
    weight, bias, x = transform.apply(io[f"{base}.weight"], strength), io[f"{base}.bias"], io[f"{base}.x"]
    if bias_too:
        bias = transform.apply(bias.view(-1, 1), strength).view(-1)
    return linear(x, weight, bias) if weight.dim() == 2 else conv2d(x, weight, bias, padding=1)


def worst_errors() -> dict[str, tuple[int, float]]:
    """For each producer how many comparisons there are, and the largest difference."""
    worst: dict[str, tuple[int, float]] = {}
    for case in produced():
        for _, found, expected in comparisons(case):
            count, error = worst.get(case.producer, (0, 0.0))
            worst[case.producer] = count + 1, max(error, float((found - expected).abs().max()))
    return worst
