"""Tokens a second of vLLM with 1, 4 and 16 OFT adapters in a batch, beside LoRA of rank 16, the base, a merged model.

    python benchmarks/serving_throughput.py MODEL --rows rows.csv

Two engines run side by side, each in a process of its own: one with a merged model, without adapters, and one with the
base and all adapters, each in a slot. In every round each row of the table generates once, so that what else the
machine does falls on all of them; the first round is not counted. The batch is the same in all rows: a request for each
of ``--requests`` prompts, whose adapters alternate. Times are those of the processor: they hold on a machine that has
other work, too, as long as an engine runs on one thread (``OMP_NUM_THREADS=1``). The ratios are medians of those within
a round, with the smallest and the largest. Ctrl-C ends it with the table of the rounds that are complete.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

PROMPT = "The library was open, and on the table lay a letter that nobody had read. "


def make(model: str, folder: Path, kind: str, adapters: int, block_size: int, dtype: str) -> list[str]:
    """Adapters of random parameters for a model.

    Args:
        model: folder of the base.
        folder: where they are written.
        kind: ``oft``, ``lora``, or ``merged`` for a model with an adapter of rotations merged into it.
        adapters: how many.
        block_size: of the rotations.
        dtype: of the model and the adapters.

    Returns:
        Their paths.
    """
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from orthotune import OFTConfig, get_peft_model

    base = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
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


class Engine:
    """An engine in a process of its own, which answers lines.

    Args:
        settings: of the command.
        kind: ``merged`` or ``adapters``.
        folder: with the adapters and the merged model.
    """

    def __init__(self, settings: argparse.Namespace, kind: str, folder: Path) -> None:
        command = [sys.executable, __file__, *sys.argv[1:], "--only", kind, str(folder)]
        self._log = (folder / f"{kind}.log").open("w+")
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
            start_new_session=True,  # Ctrl-C is for the process that asks
        )  # fmt: skip
        self.kind = kind
        self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("ANSWER "):
                return line.removeprefix("ANSWER ")
        self._log.seek(0)
        raise SystemExit(f"the engine for {self.kind} ended:\n{self._log.read()[-3000:]}")

    def seconds(self, row: str) -> float:
        """Seconds of the processor for a batch.

        Args:
            row: name of a row of the table.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(f"{row}\n")
        self._process.stdin.flush()
        return float(self._answer())

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.wait()


def serve(kind: str, folder: Path, settings: argparse.Namespace) -> None:
    """Generate for every line that comes in, and answer with the seconds of the processor.

    Args:
        kind: ``merged`` or ``adapters``.
        folder: with the adapters and the merged model.
        settings: of the command.
    """
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    options: dict[str, Any] = {
        "dtype": settings.dtype, "max_model_len": settings.max_length, "max_num_batched_tokens": 512,
        "enforce_eager": True, "enable_prefix_caching": False, "seed": 0, "max_num_seqs": settings.requests,
    }  # fmt: skip
    most = max(settings.adapters)
    if kind == "adapters":
        # One slot more than are used: for processors, the engine's LoRA adds what its last slot holds to other rows.
        slots = 2 * most + 1
        options |= {"enable_lora": True, "max_loras": slots, "max_cpu_loras": slots, "max_lora_rank": 16,
                    "additional_config": {"orthotune": {"block_sizes": [settings.block_size]}}}  # fmt: skip
    engine = LLM(settings.model if kind == "adapters" else str(folder / "merged-0"), **options)
    known = {
        (one, number): LoRARequest(f"{one}-{number}", 1 + number + first, str(folder / f"{one}-{number}"))
        for one, first in (("lora", 0), ("oft", most))
        for number in range(most)
    }
    prompts = [f"{row}. {PROMPT}" for row in range(settings.requests)]
    sampling = SamplingParams(temperature=0, max_tokens=settings.tokens, ignore_eos=True)
    print("ANSWER ready", flush=True)
    for line in sys.stdin:
        name, count = line.rsplit(maxsplit=1)
        chosen = [known[name, row % int(count)] for row in range(settings.requests)] if int(count) else None
        begun = time.process_time()
        engine.generate(prompts, sampling, lora_request=chosen, use_tqdm=False)
        print("ANSWER", time.process_time() - begun, flush=True)


def main() -> None:
    """Make the adapters, start both engines, and measure round by round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--adapters", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--block-size", type=int, default=32)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--rows", type=Path, help="a CSV file with the table")
    parser.add_argument("--only", nargs=2, metavar=("KIND", "FOLDER"), help=argparse.SUPPRESS)
    settings = parser.parse_args()
    # In the process that is asked, so that its clock counts the engine's work.
    os.environ.update({"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"})
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # the sampler alone would be compiled
    if settings.only:
        serve(settings.only[0], Path(settings.only[1]), settings)
        return
    rows = ["merged 0", "base 0", *(f"{kind} {count}" for count in settings.adapters for kind in ("lora", "oft"))]
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for kind, count in (("merged", 1), ("lora", max(settings.adapters)), ("oft", max(settings.adapters))):
            make(settings.model, folder, kind, count, settings.block_size, settings.dtype)
        engines = {kind: Engine(settings, kind, folder) for kind in ("merged", "adapters")}
        seconds: dict[str, list[float]] = {row: [] for row in rows}
        done = 0
        try:
            for number in range(settings.rounds + 1):
                taken = {}
                for row in rows:
                    taken[row] = engines["merged" if row == "merged 0" else "adapters"].seconds(row)
                    print(f"round {number}  {row}: {taken[row]:.2f} s", file=sys.stderr, flush=True)
                done = number
                for row, took in taken.items() if number else ():
                    seconds[row].append(took)
        except KeyboardInterrupt:
            if not done:
                raise
            print(f"ended in round {done + 1}", file=sys.stderr)
        finally:
            for engine in engines.values():
                engine.close()
    table = []
    for row in rows:
        kind, count = row.split()
        beside = [other / own for own, other in zip(seconds[row], seconds["merged 0"], strict=True)]
        made = settings.requests * settings.tokens / statistics.median(seconds[row])
        table.append({
            "kind": kind, "adapters": count, "requests": settings.requests, "tokens": settings.tokens,
            "block_size": settings.block_size, "dtype": settings.dtype, "rounds": done,
            "tokens_per_second": round(made, 1),
            "of_merged": round(statistics.median(beside), 3), "lowest": round(min(beside), 3),
            "highest": round(max(beside), 3),
        })  # fmt: skip
        print(f"{row:9}  {made:8.1f} tokens/s  {statistics.median(beside):.2f} of merged "
              f"({min(beside):.2f} to {max(beside):.2f})", flush=True)  # fmt: skip
    if settings.rows:
        with settings.rows.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, table[0])
            writer.writeheader()
            writer.writerows(table)


if __name__ == "__main__":
    main()
