"""A hundred adapters on one base: each adds its own numbers and no copy of the base, and leaves nothing behind."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from harness.work import aten_calls, python_calls
from orthotune import OFTConfig, get_peft_model, load_adapter

COUNT, LAYERS, SIDE, BLOCK = 100, 3, 64, 8
#: packed numbers and rotations of one adapter, float32
NUMBERS = LAYERS * (SIDE // BLOCK) * (BLOCK * (BLOCK - 1) // 2) * 4
ROTATIONS = LAYERS * (SIDE // BLOCK) * BLOCK**2 * 4


def held() -> int:
    """Bytes of all tensors that Python knows of, each storage once."""
    gc.collect()
    found = {}
    for thing in gc.get_objects():
        # other tests leave sparse, fake and functional tensors, which have no numbers of their own
        plain = type(thing) in (torch.Tensor, nn.Parameter) and thing.layout is torch.strided
        if plain and thing.device.type == "cpu" and not torch._is_functional_tensor(thing):
            storage = thing.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(SIDE, SIDE) for _ in range(LAYERS)))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    model = get_peft_model(_net(), OFTConfig(oft_block_size=BLOCK, target_modules=["0", "1", "2"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "oft_" in name:
                parameter.normal_(std=0.1)
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@torch.no_grad()
def test_memory_grows_by_the_numbers_alone_and_is_given_back(file: Path) -> None:
    x = torch.randn(2, SIDE)
    model: Any = _net()
    model, _ = load_adapter(model, file, "a0")
    model.eval()
    expected = model(x)
    first = held()
    for number in range(1, COUNT):
        model, _ = load_adapter(model, file, f"a{number}")
    loaded = held()
    # a copy of the base for each adapter would be 49 KiB beside these 2.6 KiB
    assert loaded - first <= 1.05 * (COUNT - 1) * NUMBERS
    for number in range(COUNT):
        model.set_adapter(f"a{number}")
        assert torch.equal(model(x), expected)
    used = held()
    # its rotations, kept since they were used, and once more the numbers that they were computed from
    assert used - loaded <= 1.05 * COUNT * (ROTATIONS + NUMBERS)
    model(torch.randn(COUNT, SIDE), adapter_names=[f"a{number}" for number in range(COUNT)])
    assert held() <= used + 4096  # what a mixed batch puts side by side goes when it is done
    model.set_adapter("a0")
    for number in range(1, COUNT):
        model.delete_adapter(f"a{number}")
    assert held() <= first + ROTATIONS + NUMBERS + 4096
    assert torch.equal(model(x), expected)


#: Calls of Python in a load for each adapter that is there already and each of its layers, in the walks of the host
#: through all modules and parameters; ours pass over those of other adapters.
WALKED = 420


@pytest.mark.parametrize("way", ["ours", "PEFT's"])
def test_the_fortieth_load_does_the_work_of_the_third(file: Path, way: str) -> None:
    model: Any = _net()
    model, _ = load_adapter(model, file, "a0")

    def load(number: int) -> None:
        if way == "ours":
            load_adapter(model, file, f"a{number}")
        else:
            model.load_adapter(str(file), f"a{number}")

    load(1)
    calls, operations = {}, {}
    for number in range(2, 42):
        if number in (2, 40):
            calls[number] = python_calls(lambda number=number: load(number))
        elif number in (3, 41):
            operations[number] = sum(aten_calls(lambda number=number: load(number)).values())
        else:
            load(number)
    assert operations[41] == operations[3]  # tensors are made, filled and read for the new adapter alone
    assert calls[40] - calls[2] <= WALKED * (40 - 2) * LAYERS


@torch.no_grad()
def test_loading_and_deleting_again_and_again_leaves_nothing(file: Path) -> None:
    model: Any = _net()
    model, _ = load_adapter(model, file, "kept")
    model.eval()
    x, sizes = torch.randn(2, SIDE), []
    for _ in range(6):
        model, _ = load_adapter(model, file, "guest")
        model.set_adapter("guest")
        model(x)
        model.set_scale("guest", 0.5)
        model(x, adapter_names=["guest", "kept"])
        model.set_adapter("kept")
        model(x)
        model.delete_adapter("guest")
        sizes.append(held())
    assert max(sizes[1:]) == min(sizes[1:])
