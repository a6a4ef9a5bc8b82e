"""An entire training step of a small language model, optimizer included: rotations beside LoRA.

    python benchmarks/complete_step.py --threads 2 --repetitions 7 --out benchmarks/results/complete-step-cpu.csv

A causal language model of SmolLM2-135M's shapes with random weights: embedding, 30 blocks, the head over 49,152 tokens
and its loss, the backward, clipping of gradients, AdamW. All methods alternate in one process around the same frozen
weights, each repetition begins with another one, and a ratio is a time divided by LoRA's in the same repetition.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from harness import machine
from harness.cells import Cell
from harness.contenders import FUSED, Contender, stirred
from harness.fused_lora import fused_lora
from harness.measure import measure
from harness.saved_bytes import saved_bytes
from harness.step import Step
from harness.subject import Subject
from orthotune.files.platforms import load_average
from orthotune.files.tables import write_table

#: of SmolLM2-135M's published configuration
SHAPE = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
}  # fmt: skip
#: the first one is what the others are compared with
NAMES = ("lora", "lora_fused", "orthotune")
CLIP = 1.0


def causal_model(dtype: str, tokens: int, shape: dict[str, int]) -> Subject:
    """The frozen model, token numbers ``(1, tokens)``, and the loss of predicting each from those before it.

    Args:
        dtype: of the weights, by its name in torch.
        tokens: of the text.
        shape: of the configuration.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(**shape, max_position_embeddings=max(tokens, 8))
    model = LlamaForCausalLM(config).to(getattr(torch, dtype)).requires_grad_(False)
    return Subject(model, torch.randint(shape["vocab_size"], (1, tokens)), _loss)


def _loss(model: nn.Module, ids: Tensor) -> Tensor:
    found: Tensor = model(input_ids=ids, labels=ids, use_cache=False).loss
    return found


def _fused(model: nn.Module) -> nn.Module:
    fused_lora(model.model)  # type: ignore[arg-type]
    return model


def methods() -> list[Contender]:
    """LoRA as PEFT computes it, LoRA with hand-written gradients, and exact rotations in blocks of 32."""
    found = {one.name: one for one in FUSED} | {"lora_fused": Contender("lora_fused", build=_fused)}
    return [found[name] for name in NAMES]


def training_step(subject: Subject, model: nn.Module, learning_rate: float = 1e-4) -> Step:
    """Forward, backward, clipping, the optimizer's step, and clearing of the gradients.

    Args:
        subject: the model's input and call.
        model: with an adapter.
        learning_rate: of AdamW.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate)

    def run() -> None:
        subject.call(model, subject.x).backward()
        nn.utils.clip_grad_norm_(trained, CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return Step(run)


def main() -> None:
    """Measure, print a table and write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=SHAPE["num_hidden_layers"])
    parser.add_argument("--vocabulary", type=int, default=SHAPE["vocab_size"])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=600.0, help="Time limit, after five repetitions.")
    parser.add_argument("--out", type=Path, help="A CSV file.")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    load = load_average()
    shape = SHAPE | {"num_hidden_layers": given.layers, "vocab_size": given.vocabulary}
    subject = causal_model(given.dtype, given.tokens, shape)
    cell = Cell(SHAPE["hidden_size"], given.tokens, given.layers, given.dtype)
    models = {one.name: stirred(one, subject, cell) for one in methods()}
    steps = {name: training_step(subject, model) for name, model in models.items()}
    rows = []
    for name, found in measure(steps, torch.device("cpu"), given.repetitions, given.seconds).items():
        model = models[name]
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        kept = saved_bytes(partial(subject.call, model, subject.x), model)
        print(f"{name:12} {found.median:.3f} ({found.p10:.3f}-{found.p90:.3f}) of LoRA's time  "
              f"{trained:,} parameters  {kept / 2**20:.1f} MiB saved", flush=True)  # fmt: skip
        rows.append({
            "layers": given.layers, "tokens": given.tokens, "vocabulary": given.vocabulary, "dtype": given.dtype,
            "name": name, "median": round(found.median, 4), "p10": round(found.p10, 4), "p90": round(found.p90, 4),
            "repetitions": found.repetitions, "parameters": trained, "saved_bytes": kept, "threads": given.threads,
            "load": load, "device_name": machine.device_name(torch.device("cpu")), "versions": machine.versions(),
            "commit": machine.commit(),
        })  # fmt: skip
    if given.out:
        write_table(given.out, rows)


if __name__ == "__main__":
    main()
