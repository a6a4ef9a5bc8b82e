"""What a training step on a 4-bit base needs: rotations (QOFT) beside LoRA (QLoRA), on the same model in one run.

    python benchmarks/quantized_memory.py --hidden 1024 --layers 4 --tokens 512

Needs bitsandbytes. Each contender runs in a process of its own on the same random weights: a stack of Llama blocks in
nf4 with quantized scales, all seven projections adapted, LoRA with r=16, rotations with blocks of 32. Printed are

- the bytes that autograd keeps for the backward, each storage once, parameters and buffers not counted;
- how far the memory of the process (on a GPU: the allocated memory) rises during a step; the median of five steps;
- the bytes of adapter, gradients and optimizer (AdamW), which the first two leave out;

and their ratios, which are what can be compared between machines.
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

CONTENDERS = ("orthotune", "peft_lora")
STEPS = 5


def quantized(model: nn.Module, device: torch.device) -> nn.Module:
    """``model`` in bfloat16 with every linear layer in nf4, the scales quantized too, as QLoRA has it."""
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


def measure(contender: str, options: argparse.Namespace) -> dict[str, Any]:
    """The figures of one contender, in this process."""
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cell = Cell(mode="train", hidden=options.hidden, tokens=options.tokens, layers=options.layers)
    base, x, call = llama.build(cell)
    config: Any = LoraConfig(r=options.rank, target_modules=llama.PROJECTIONS)
    if contender == "orthotune":
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

    step()  # gradients, states and the library's own buffers are there from now on
    optimizer.step()
    trained = sum(p.numel() for p in learning)
    state = [v for values in optimizer.state.values() for v in values.values() if isinstance(v, Tensor) and v.dim()]
    kept = [*learning, *(p.grad for p in learning if p.grad is not None), *state]
    return {
        "contender": contender,
        "trained": trained,
        "adapter_bytes": sum(t.numel() * t.element_size() for t in kept),
        "saved_bytes": saved_bytes(forward, model),
        "peak_bytes": int(statistics.median(_rise(step, device) for _ in range(STEPS))),
    }


def _rise(step: Any, device: torch.device) -> int:
    on_gpu = peak_bytes(step, device)
    if on_gpu is not None:
        return on_gpu
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts from here
    before = _status("VmRSS")
    step()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024


def main() -> None:
    """Measure each contender in a process of its own and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"hidden": 1024, "layers": 4, "tokens": 512, "rank": 16, "block-size": 32, "threads": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--one", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options)))
        return
    found = {}
    for contender in CONTENDERS:
        words = [sys.executable, __file__, *sys.argv[1:], "--one", contender]
        # Freed blocks go back to the system at once, so that the process holds what the step holds.
        room = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True, env=room)
        found[contender] = json.loads(done.stdout.splitlines()[-1])
    print(
        f"hidden {options.hidden}, {options.layers} layers, {options.tokens} tokens, nf4 and bfloat16; "
        f"{machine.versions()}"
    )
    print(f"| {'':<42} | {' | '.join(CONTENDERS)} | ratio |\n|---|---|---|---|")
    for key, words in {
        "trained": "trained numbers",
        "adapter_bytes": "adapter, gradients, optimizer (MiB)",
        "saved_bytes": "kept for the backward (MiB)",
        "peak_bytes": "rise of the memory in a step (MiB)",
    }.items():
        one, other = (found[name][key] for name in CONTENDERS)
        cells = [f"{v:,}" if key == "trained" else f"{v / 2**20:.1f}" for v in (one, other)]
        print(f"| {words:<42} | {cells[0]} | {cells[1]} | {one / other:.2f} |")


if __name__ == "__main__":
    main()
