"""An adapter on a real model as GGUF files, read by transformers: how far the predictions are from the merged model's.

    python benchmarks/gguf_round_trip.py BASE OUT [--type f16 --type bf16 --type q8_0]

BASE is a folder of a language model; ``orthotune.worlds.smollm2`` fetches one. The adapter has random rotations on
every projection, so that each of them differs from the base. A row for each type: megabytes, seconds of the processor
to merge and write, the largest difference of a log-probability, the mean divergence in nats per token, whether the
tokenizer in the file gives the same tokens, and at how many places another token is the likeliest. With the package
``xllamacpp``, llama.cpp reads each file, too: the largest difference of the log-probabilities that it lists after
prefixes of the text, and whether it makes the same tokens of the text.
"""

from __future__ import annotations

import argparse
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from orthotune import OFTConfig, export, get_peft_model

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TEXT = "The capital of France is Paris. Les pages de manuel décrivent 1234 commandes,\n\n\tet leurs options. " * 6
#: Standard deviation of the stored parameters.
SIZE = 0.004
TOKENS = 96
#: For llama.cpp: how many log-probabilities are listed, and after how many tokens.
LISTED, PREFIXES = 20, (8, 24, 40, 56, 72, 88)


def write_adapter(base: Path, folder: Path) -> None:
    """An adapter with random rotations on all projections."""
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    model = get_peft_model(model, OFTConfig(oft_block_size=32, target_modules=TARGETS, use_cayley_neumann=False))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "oft_R" in name:
                parameter.normal_(std=SIZE)
    model.save_pretrained(folder)


@torch.no_grad()
def predictions(model: Any, ids: Tensor) -> Tensor:
    """Log-probabilities of every next token, in double precision."""
    return cast(Tensor, model.eval()(ids).logits.double().log_softmax(-1))


def divergence(one: Tensor, other: Tensor) -> float:
    """Mean KL(one || other) in nats per token."""
    return float((one.exp() * (one - other)).sum(-1).mean())


def in_llama_cpp(file: Path, ids: Tensor, merged: Tensor, same_tokens: int) -> str:
    """How far llama.cpp's log-probabilities are from the merged model's, and whether its tokens of the text are.

    Args:
        file: the GGUF file.
        ids: ``(1, tokens)``.
        merged: log-probabilities of the merged model, ``(1, tokens, vocabulary)``.
        same_tokens: how many tokens the tokenizer makes of the text.
    """
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.warmup = str(file), 512, False
    server, away = xllamacpp.Server(params), []
    for length in PREFIXES:
        asked = {"prompt": ids[0, :length].tolist(), "max_tokens": 1, "temperature": 0, "logprobs": LISTED}
        (step,) = server.handle_completions(asked)["choices"][0]["logprobs"]["content"]
        away += [abs(one["logprob"] - float(merged[0, length - 1, one["id"]])) for one in step["top_logprobs"]]
    read = server.handle_completions({"prompt": TEXT, "max_tokens": 1})["usage"]["prompt_tokens"]
    return f"llama.cpp: largest {max(away):.2g}  {read} tokens of the text, {same_tokens} by the tokenizer"


def main() -> None:
    """Write, read and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--type", action="append", choices=("f16", "bf16", "q8_0"))
    words = parser.parse_args()
    adapter = words.out / "adapter"
    write_adapter(words.base, adapter)
    tokenizer = AutoTokenizer.from_pretrained(words.base)
    ids = tokenizer(TEXT, return_tensors="pt")["input_ids"][:, :TOKENS]
    export(adapter, words.out / "merged", words.base, "dense")
    merged = predictions(AutoModelForCausalLM.from_pretrained(words.out / "merged", dtype=torch.float32), ids)
    base = predictions(AutoModelForCausalLM.from_pretrained(words.base, dtype=torch.float32), ids)
    print(f"base  divergence {divergence(merged, base):.2g}")
    for kind in words.type or ("f16", "bf16", "q8_0"):
        begun = time.process_time()
        made = export(adapter, words.out / kind, words.base, "gguf", gguf_type=kind).gguf
        seconds = time.process_time() - begun
        assert made is not None and made.by == "gguf"
        folder, file = words.out / kind, made.file
        read = predictions(AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32), ids)
        same = AutoTokenizer.from_pretrained(folder, gguf_file=file)(TEXT).input_ids == tokenizer(TEXT).input_ids
        print(
            f"{kind}  {(folder / file).stat().st_size / 1e6:.0f} MB  {seconds:.1f} s  largest "
            f"{(read - merged).abs().max():.2g}  divergence {divergence(merged, read):.2g}  same tokens {same}  "
            f"another likeliest at {int((read.argmax(-1) != merged.argmax(-1)).sum())} of {merged.shape[1]}",
            flush=True,
        )
        if find_spec("xllamacpp") is not None:
            print(f"{kind}  {in_llama_cpp(folder / file, ids, merged, len(tokenizer(TEXT).input_ids))}", flush=True)


if __name__ == "__main__":
    main()
