"""What a process holds, measured along a long training and along many lives of an adapter."""

from __future__ import annotations

import gc
import os
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from orthotune import OFTConfig, get_peft_model, load_adapter
from orthotune.layers.base import OFTLayer
from tests.support.tiny_text import make_model


@dataclass(frozen=True)
class Footprint:
    """At one moment: live tensors and the bytes of their storages, objects and allocations of Python, files, memory.

    ``python_bytes`` is 0 where allocations were not traced, which takes most of the time of a step.
    """

    at: int
    tensors: int
    tensor_bytes: int
    objects: int
    python_bytes: int
    files: int
    resident: int


def footprint(at: int) -> Footprint:
    """What this process holds now, after a collection."""
    gc.collect()
    objects = gc.get_objects()
    # others may have left sparse, fake and functional tensors, which have no numbers of their own
    plain = [thing for thing in objects if type(thing) in (torch.Tensor, torch.nn.Parameter)]
    found = [thing for thing in plain if thing.layout is torch.strided and not torch._is_functional_tensor(thing)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in found}
    here = Path("/proc/self")
    return Footprint(
        at=at,
        tensors=len(found),
        tensor_bytes=sum(storages.values()),
        objects=len(objects),
        python_bytes=tracemalloc.get_traced_memory()[0],
        files=len(os.listdir(here / "fd")) if here.is_dir() else 0,
        resident=int((here / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if here.is_dir() else 0,
    )


def watched(job: Callable[[], object], count: int, every: int, trace: bool = False) -> list[Footprint]:
    """Footprints along ``count`` calls of ``job``, one before each ``every`` of them, and one at the end."""
    if trace:
        tracemalloc.start()
    try:
        found = []
        for at in range(count):
            if at % every == 0:
                found.append(footprint(at))
            job()
        return [*found, footprint(count)]
    finally:
        tracemalloc.stop()


def training(**options: Any) -> Callable[[], object]:
    """One training step of a tiny Llama with an adapter on every linear layer, with an evaluation between."""
    model = get_peft_model(make_model(64), OFTConfig(r=0, oft_block_size=8, target_modules="all-linear", **options))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    batches: Iterator[torch.Tensor] = iter(lambda: torch.randint(2, 64, (2, 16)), None)

    def step() -> None:
        model.train()
        batch = next(batches)
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        model.eval()
        with torch.no_grad():
            model(input_ids=batch[:1])

    return step


def lives(folder: Path) -> Callable[[], object]:
    """One life of an adapter: loaded, switched on, merged, unmerged, deleted; or merged for good and thrown away."""
    torch.manual_seed(0)
    first = get_peft_model(make_model(64), OFTConfig(r=0, oft_block_size=8, target_modules="all-linear"))
    for layer in first.modules():
        if isinstance(layer, OFTLayer):
            for rotation in layer.rotations("default").values():
                torch.nn.init.normal_(rotation.weight, std=0.1)
    first.save_pretrained(folder)
    batch = torch.arange(2, 18)[None]
    host, expected = first.eval(), None
    turn = 0

    def life() -> None:
        nonlocal turn, expected
        turn += 1
        with torch.no_grad():
            host.load_adapter(str(folder), "second")
            host.set_adapter("second")
            found = host(input_ids=batch).logits
            host.merge_adapter()
            host.unmerge_adapter()
            host.set_adapter("default")
            host.delete_adapter("second")
            if expected is None:
                expected = found
            assert torch.equal(found, expected), "the adapter of this life is not the one of the first"
            if turn % 4 == 0:  # the other way: put on a base of its own, merged for good, thrown away with it
                model, _ = load_adapter(make_model(64).eval(), folder)
                model.merge_and_unload()

    return life
