"""How long merging takes, in memory and from file to file, against reading and writing the same bytes once.

    python benchmarks/bench_merge.py --layers 4 --hidden 4096 --intermediate 14336 --vocabulary 4096

The shape of Llama-8B is hidden 4096, intermediate 14336, 32 heads, 8 of them for keys; the default is a quarter of it.
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


def prepare(home: Path, options: argparse.Namespace) -> None:
    """A base with random numbers and an adapter on all linear layers."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=options.hidden, intermediate_size=options.intermediate, num_hidden_layers=options.layers,
        num_attention_heads=32, num_key_value_heads=8, vocab_size=options.vocabulary, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(getattr(torch, options.dtype))
    model.save_pretrained(home / "base", max_shard_size=options.shard)
    adapter = OFTConfig(oft_block_size=options.block_size, target_modules="all-linear", side=options.side)
    tuned = get_peft_model(model, adapter)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.02)
    tuned.save_pretrained(home / "adapter")


def copy_files(home: Path, out: Path) -> None:
    """Read and write the bytes of the base once, as a program that only moved them would."""
    buffer = memoryview(bytearray(COPIED))
    for path in (home / "base").glob("*.safetensors"):
        with path.open("rb", buffering=0) as source, (out / path.name).open("wb", buffering=0) as target:
            while count := source.readinto(buffer):
                target.write(buffer[:count])


def load_and_save(home: Path, out: Path) -> None:
    """Load the tensors and save them again, without turning any."""
    for path in (home / "base").glob("*.safetensors"):
        save_file({name: tensor.clone() for name, tensor in load_file(path).items()}, out / path.name)


def streamed(home: Path, out: Path) -> None:
    """``orthotune merge --stream``."""
    merge_checkpoint(home / "adapter", home / "base", out)


def in_memory(home: Path, out: Path) -> None:
    """``orthotune merge``: load, merge, save."""
    model = AutoModelForCausalLM.from_pretrained(home / "base", dtype="auto")
    PeftModel.from_pretrained(model, home / "adapter").merge_and_unload().save_pretrained(out)


def merge_alone(home: Path) -> Callable[[], float]:
    """Seconds of ``merge_and_unload`` alone, on a loaded model."""

    def run() -> float:
        model = AutoModelForCausalLM.from_pretrained(home / "base", dtype="auto")
        tuned = PeftModel.from_pretrained(model, home / "adapter")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.data = parameter.data.clone()  # out of the mapped file
        began = time.perf_counter()
        tuned.merge_and_unload()
        return time.perf_counter() - began

    return run


def main() -> None:
    """Prints medians of the ratios to the floor, repetition by repetition, as one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"layers": 2, "hidden": 1024, "intermediate": 3584, "vocabulary": 1024, "block-size": 32}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--side", default="in")
    parser.add_argument("--shard", default="5GB")
    parser.add_argument("--folder", help="where the files go, on the disk that is meant; a temporary place by default")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    ways: dict[str, Callable[[Path, Path], None]] = {
        "copy_files": copy_files, "load_and_save": load_and_save, "streamed": streamed, "in_memory": in_memory,
    }  # fmt: skip
    times: dict[str, list[float]] = {name: [] for name in [*ways, "merge_alone"]}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        home = Path(folder)
        prepare(home, options)
        alone = merge_alone(home)
        for turn in range(options.repetitions + 1):
            for name, way in ways.items():
                out = home / "out"
                out.mkdir()
                began = time.perf_counter()
                way(home, out)
                seconds = time.perf_counter() - began
                shutil.rmtree(out)
                if turn:  # the first round fills the caches
                    times[name].append(seconds)
            if turn:
                times["merge_alone"].append(alone())
        size = sum(path.stat().st_size for path in (home / "base").glob("*.safetensors"))
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
