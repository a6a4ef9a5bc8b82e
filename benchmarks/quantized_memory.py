"""Memory of a training step on a 4-bit base: rotations (QOFT) and LoRA (QLoRA) on the same model in one run.

    python benchmarks/quantized_memory.py --hidden 1024 --layers 4 --tokens 512

Needs bitsandbytes. Each method runs in its own process on the same random weights: a stack of Llama blocks in nf4 with
quantized scales, all seven projections adapted, LoRA with r=16, rotations with blocks of 32. The table has

- the bytes that autograd saves for the backward, each storage once, without parameters and buffers;
- the increase of the memory of the process (on a GPU: the allocated memory) during a step, the median of five steps;
- the bytes of adapter, gradients and optimizer (AdamW), which are not part of the first two;

and their ratios, which can be compared between machines.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor, nn

from harness import llama, machine
from harness.cells import Cell
from harness.saved_bytes import peak_bytes, saved_bytes
from orthotune import OFTConfig, get_peft_model

METHODS = ("orthotune", "peft_lora")
STEPS = 5


def quantized(model: nn.Module, device: torch.device) -> nn.Module:
    """``model`` in bfloat16 with every linear layer in nf4, with quantized scales, as in QLoRA."""
    from bitsandbytes.nn import Linear4bit

    model = model.to(torch.bfloat16)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            made = Linear4bit(
                module.in_features, module.out_features, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4"
            )
            made.load_state_dict(module.state_dict())
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, made.to(device))
    return model.to(device).requires_grad_(False)


def measure(method: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one method in this process."""
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cell = Cell(mode="train", hidden=options.hidden, tokens=options.tokens, layers=options.layers)
    base, x, call = llama.build(cell)
    config: Any = LoraConfig(r=options.rank, target_modules=llama.PROJECTIONS)
    if method == "orthotune":
        config = OFTConfig(oft_block_size=options.block_size, target_modules=llama.PROJECTIONS)
    model = get_peft_model(quantized(base, device), config).train()
    x = x.to(device, torch.bfloat16)
    learning = [p for p in model.parameters() if p.requires_grad]
    for parameter in learning:
        parameter.data.add_(0.01 * torch.randn_like(parameter))
    optimizer = torch.optim.AdamW(learning)

    def forward() -> Tensor:
        return call(model.base_model.model, x.requires_grad_(True))

    def step() -> None:
        forward().float().square().mean().backward()
        x.grad = None

    step()  # allocates gradients, states and buffers of the library
    optimizer.step()
    trained = sum(p.numel() for p in learning)
    state = [v for values in optimizer.state.values() for v in values.values() if isinstance(v, Tensor) and v.dim()]
    kept = [*learning, *(p.grad for p in learning if p.grad is not None), *state]
    return {
        "method": method,
        "trained": trained,
        "adapter_bytes": sum(t.numel() * t.element_size() for t in kept),
        "saved_bytes": saved_bytes(forward, model),
        "peak_bytes": int(statistics.median(_rise(step, device) for _ in range(STEPS))),
    }


def _rise(step: Any, device: torch.device) -> int:
    on_gpu = peak_bytes(step, device)
    if on_gpu is not None:
        return on_gpu
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = _status("VmRSS")
    step()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024


def main() -> None:
    """Measure each method in its own process and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"hidden": 1024, "layers": 4, "tokens": 512, "rank": 16, "block-size": 32, "threads": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--one", choices=METHODS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options)))
        return
    found = {}
    for method in METHODS:
        command = [sys.executable, __file__, *sys.argv[1:], "--one", method]
        # Freed blocks are returned to the system at once, so that the memory of the process is that of the step.
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
        found[method] = json.loads(done.stdout.splitlines()[-1])
    print(
        f"hidden {options.hidden}, {options.layers} layers, {options.tokens} tokens, nf4 and bfloat16; "
        f"{machine.versions()}"
    )
    print(f"| {'':<42} | {' | '.join(METHODS)} | ratio |\n|---|---|---|---|")
    for key, words in {
        "trained": "trained parameters",
        "adapter_bytes": "adapter, gradients, optimizer (MiB)",
        "saved_bytes": "kept for the backward (MiB)",
        "peak_bytes": "rise of the memory in a step (MiB)",
    }.items():
        one, other = (found[name][key] for name in METHODS)
        cells = [f"{v:,}" if key == "trained" else f"{v / 2**20:.1f}" for v in (one, other)]
        print(f"| {words:<42} | {cells[0]} | {cells[1]} | {one / other:.2f} |")


if __name__ == "__main__":
    main()
