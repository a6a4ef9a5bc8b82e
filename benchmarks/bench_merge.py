"""Time of a merge, in memory and from file to file, relative to reading and writing the same bytes once.

    python benchmarks/bench_merge.py --layers 4 --hidden 4096 --intermediate 14336 --vocabulary 4096

Llama-8B has hidden size 4096, intermediate size 14336, 32 heads and 8 key heads; the default is a quarter of that.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from harness import machine
from orthotune import OFTConfig, PeftModel, get_peft_model
from orthotune.files.platforms import load_average
from orthotune.operations.checkpoint.stream import merge_checkpoint

COPIED = 1 << 23


def prepare(folder: Path, options: argparse.Namespace) -> None:
    """Write a base with random weights and an adapter of all linear layers."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=options.hidden, intermediate_size=options.intermediate, num_hidden_layers=options.layers,
        num_attention_heads=32, num_key_value_heads=8, vocab_size=options.vocabulary, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(getattr(torch, options.dtype))
    model.save_pretrained(folder / "base", max_shard_size=options.shard)
    adapter = OFTConfig(oft_block_size=options.block_size, target_modules="all-linear", side=options.side)
    tuned = get_peft_model(model, adapter)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.02)
    tuned.save_pretrained(folder / "adapter")


def copy_files(folder: Path, out: Path) -> None:
    """Read and write the bytes of the base once: the lower bound of any merge."""
    buffer = memoryview(bytearray(COPIED))
    for path in (folder / "base").glob("*.safetensors"):
        with path.open("rb", buffering=0) as source, (out / path.name).open("wb", buffering=0) as target:
            while count := source.readinto(buffer):
                target.write(buffer[:count])


def load_and_save(folder: Path, out: Path) -> None:
    """Load the tensors and save them unchanged."""
    for path in (folder / "base").glob("*.safetensors"):
        save_file({name: tensor.clone() for name, tensor in load_file(path).items()}, out / path.name)


def streamed(folder: Path, out: Path) -> None:
    """``orthotune merge --stream``."""
    merge_checkpoint(folder / "adapter", folder / "base", out)


def in_memory(folder: Path, out: Path) -> None:
    """``orthotune merge``: load, merge, save."""
    model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype="auto")
    PeftModel.from_pretrained(model, folder / "adapter").merge_and_unload().save_pretrained(out)


def merge_alone(folder: Path) -> Callable[[], float]:
    """A function that measures the seconds of ``merge_and_unload`` on a loaded model."""

    def run() -> float:
        model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype="auto")
        tuned = PeftModel.from_pretrained(model, folder / "adapter")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.data = parameter.data.clone()  # copied from the mapped file into memory
        began = time.perf_counter()
        tuned.merge_and_unload()
        return time.perf_counter() - began

    return run


def main() -> None:
    """Print the medians of the ratios to the lower bound, per repetition, as a JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"layers": 2, "hidden": 1024, "intermediate": 3584, "vocabulary": 1024, "block-size": 32}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--side", default="in")
    parser.add_argument("--shard", default="5GB")
    parser.add_argument("--folder", help="folder on the disk to measure; a temporary folder by default")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    ways: dict[str, Callable[[Path, Path], None]] = {
        "copy_files": copy_files, "load_and_save": load_and_save, "streamed": streamed, "in_memory": in_memory,
    }  # fmt: skip
    times: dict[str, list[float]] = {name: [] for name in [*ways, "merge_alone"]}
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder = Path(temporary)
        prepare(folder, options)
        alone = merge_alone(folder)
        for repetition in range(options.repetitions + 1):
            for name, way in ways.items():
                out = folder / "out"
                out.mkdir()
                began = time.perf_counter()
                way(folder, out)
                seconds = time.perf_counter() - began
                shutil.rmtree(out)
                if repetition:  # the first repetition fills the caches
                    times[name].append(seconds)
            if repetition:
                times["merge_alone"].append(alone())
        size = sum(path.stat().st_size for path in (folder / "base").glob("*.safetensors"))
    ratios = {name: [a / b for a, b in zip(found, times["copy_files"], strict=True)] for name, found in times.items()}
    result = {
        "bytes": size,
        "to_copy_files": {name: round(statistics.median(found), 3) for name, found in ratios.items()},
        "spread": {name: [round(min(found), 3), round(max(found), 3)] for name, found in ratios.items()},
        "settings": {key: value for key, value in vars(options).items() if key != "folder"},
        "threads": torch.get_num_threads(), "load": load_average(), "versions": machine.versions(),
        "device_name": machine.device_name(torch.device("cpu")), "commit": machine.commit(),
    }  # fmt: skip
    json.dump(result, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
