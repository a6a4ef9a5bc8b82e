"""Tokens a second of vLLM with 1, 4 and 16 OFT adapters in a batch, beside LoRA of rank 16, the base, a merged model.

    python benchmarks/serving_throughput.py MODEL --rows rows.jsonl

Every row runs in a process of its own: an engine takes all threads and memory that it finds. The batch is the same in
all rows, a request for each of ``--requests`` prompts, whose adapters alternate. The machine has to be quiet.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

PROMPT = "The library was open, and on the table lay a letter that nobody had read. "


def make(model: str, folder: Path, kind: str, adapters: int, block_size: int) -> list[str]:
    """Adapters of random parameters for a model.

    Args:
        model: folder of the base.
        folder: where they are written.
        kind: ``oft``, ``lora``, or ``merged`` for a model with an adapter of rotations merged into it.
        adapters: how many.
        block_size: of the rotations.

    Returns:
        Their paths.
    """
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from orthotune import OFTConfig, get_peft_model

    base = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
    config: Any = OFTConfig(target_modules="all-linear", oft_block_size=block_size)
    if kind == "lora":
        config = LoraConfig(r=16, lora_alpha=16, target_modules="all-linear", init_lora_weights=False)
    tuned, paths = get_peft_model(base, config), []
    for number in range(adapters):
        torch.manual_seed(number)
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.data.normal_(std=0.02)
        paths.append(str(folder / f"{kind}-{number}"))
        if kind != "merged":
            tuned.save_pretrained(paths[-1])
    if kind == "merged":
        tuned.merge_and_unload().save_pretrained(paths[0])
        AutoTokenizer.from_pretrained(model).save_pretrained(paths[0])
    return paths


def measure(model: str, kind: str, paths: list[str], settings: argparse.Namespace) -> dict[str, Any]:
    """Tokens a second of an engine, the median of several rounds after one that is not counted.

    Args:
        model: folder of the model.
        kind: ``base``, ``merged``, ``lora`` or ``oft``.
        paths: of its adapters.
        settings: of the command.

    Returns:
        A row of the table.
    """
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    options: dict[str, Any] = {
        "max_model_len": settings.max_length,
        "enforce_eager": True,
        "enable_prefix_caching": False,
        "seed": 0,
    }
    if paths:
        options |= {"enable_lora": True, "max_loras": len(paths), "max_lora_rank": 16,
                    "additional_config": {"orthotune": {"block_sizes": [settings.block_size]}}}  # fmt: skip
    engine = LLM(model, **options)
    requests = [LoRARequest(path, number + 1, path) for number, path in enumerate(paths)]
    chosen = [requests[row % len(requests)] for row in range(settings.requests)] if requests else None
    prompts = [f"{row}. {PROMPT}" for row in range(settings.requests)]
    sampling = SamplingParams(temperature=0, max_tokens=settings.tokens, ignore_eos=True)
    rates = []
    for _ in range(settings.rounds + 1):
        start = time.perf_counter()
        engine.generate(prompts, sampling, lora_request=chosen, use_tqdm=False)
        rates.append(settings.requests * settings.tokens / (time.perf_counter() - start))
    rates = sorted(rates[1:])
    return {
        "kind": kind, "adapters": len(paths), "requests": settings.requests, "tokens": settings.tokens,
        "block_size": settings.block_size, "tokens_per_second": rates[len(rates) // 2], "lowest": rates[0],
        "highest": rates[-1],
    }  # fmt: skip


def main() -> None:
    """Measure every row, or, with ``--only``, one of them in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--adapters", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--block-size", type=int, default=32)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--rows", type=Path, help="a file to which a line of JSON is added for each row")
    parser.add_argument("--only", nargs=2, metavar=("KIND", "ADAPTERS"), help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.only:
        kind, count = settings.only[0], int(settings.only[1])
        with TemporaryDirectory() as folder:
            paths = make(settings.model, Path(folder), kind, count, settings.block_size) if kind != "base" else []
            model, paths = (paths[0], []) if kind == "merged" else (settings.model, paths)
            print("ROW", json.dumps(measure(model, kind, paths, settings)))
        return
    rows = [("base", 0), ("merged", 1), *((kind, count) for count in settings.adapters for kind in ("lora", "oft"))]
    for kind, count in rows:
        command = [sys.executable, __file__, *sys.argv[1:], "--only", kind, str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        found = [line for line in done.stdout.splitlines() if line.startswith("ROW ")]
        if not found:
            raise SystemExit(f"{kind} with {count} adapters failed:\n{done.stderr[-3000:]}")
        row = json.loads(found[0].removeprefix("ROW "))
        print(f"{kind:7} {count:3} adapters  {row['tokens_per_second']:8.1f} tokens/s", flush=True)
        if settings.rows:
            with settings.rows.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
