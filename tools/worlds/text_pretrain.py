"""Train the tokenizer and the model of the text world.

Each step depends only on the seed and its number, so that an interrupted run can be resumed exactly.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from config_files import change_config
from orthotune.files.atomic import atomic_write
from orthotune.text.muon import muon_with_adamw

END, PAD = "<|endoftext|>", "<|pad|>"
VOCABULARY = 2048
OPTIMIZERS = ("adamw", "muon")
#: features of an attention head
HEAD = 32


@dataclass(frozen=True)
class Schedule:
    """The schedule of the training, the size of its batches, the optimizer, and the size of the model.

    The rate rises over ``warmup`` steps, follows a cosine that would end at ``horizon``, and falls to zero on a
    straight line over the last ``anneal`` steps. The defaults are those of the released model; other sizes and
    optimizers are bases for experiments on what a base's size and pretraining do.
    """

    steps: int = 2600
    horizon: int = 4500
    anneal: int = 600
    batch: int = 16
    length: int = 256
    peak: float = 3e-3
    warmup: int = 100
    seed: int = 0
    keep_every: int = 100
    optimizer: str = "adamw"
    width: int = 192
    layers: int = 4


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of 2,048 tokens, without an unknown token."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=END,
        eos_token=END,
        pad_token=PAD,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def new_model(tokenizer: PreTrainedTokenizerFast, plan: Schedule) -> LlamaForCausalLM:
    """A new Llama model: of 2.16 million parameters at the width and depth of the released one.

    The MLP is 8/3 times as wide as the model, rounded to a multiple of 64, and a head has 32 features.
    """
    torch.manual_seed(plan.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=plan.width,
            intermediate_size=round(plan.width * 8 / 3 / 64) * 64,
            num_hidden_layers=plan.layers,
            num_attention_heads=plan.width // HEAD,
            num_key_value_heads=plan.width // HEAD,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def stream(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> torch.Tensor:
    """The tokens of all texts in one row, with the end token after each text."""
    ids: list[int] = []
    for text in texts:
        ids += tokenizer.backend_tokenizer.encode(text).ids
        ids.append(tokenizer.eos_token_id)
    return torch.tensor(ids)


def pretrain(model: LlamaForCausalLM, tokens: torch.Tensor, plan: Schedule, checkpoint: Path) -> float:
    """Train ``model`` in place, from ``checkpoint`` if it exists; return the total minutes of all calls."""
    optimizer = _optimizer(model, plan)
    first, minutes_before = 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first, minutes_before = state["step"], state["minutes"]
    model.train()
    began = time.monotonic()
    for step in range(first, plan.steps):
        for group in optimizer.param_groups:
            group["lr"] = _rate(step, plan)
        batch = _windows(tokens, plan, step)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(batch[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        minutes = minutes_before + (time.monotonic() - began) / 60
        if (step + 1) % 50 == 0:
            print(f"step {step + 1}/{plan.steps}  loss {loss.item():.3f}  {minutes:.1f} min", flush=True)
        if (step + 1) % plan.keep_every == 0:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            with atomic_write(checkpoint) as partial:
                torch.save(state | {"step": step + 1, "minutes": minutes}, partial)
    return minutes_before + (time.monotonic() - began) / 60


@torch.no_grad()
def nats_per_token(model: LlamaForCausalLM, tokens: torch.Tensor, length: int = 256) -> float:
    """Mean loss over consecutive windows of ``length`` predicted tokens; a shorter last window is skipped."""
    model.eval()
    rows = tokens[: (len(tokens) - 1) // length * length + 1].unfold(0, length + 1, length)
    losses = []
    for batch in rows.split(16):
        logits = model(batch[:, :-1], use_cache=False).logits.float()
        losses.append(torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="none"))
    return torch.cat(losses).mean().item()


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the model in half precision with its tokenizer, as a folder that ``from_pretrained`` reads."""
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # The files are in half precision to be small, but the model is for training: by default it loads in float32.
    change_config(folder / "config.json", dtype="float32")
    # A class name that exists in transformers 4 and 5.
    change_config(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    for path in folder.iterdir():
        path.chmod(0o644)


def _optimizer(model: LlamaForCausalLM, plan: Schedule) -> torch.optim.Optimizer:
    if plan.optimizer == "muon":
        return muon_with_adamw(model, plan.peak, weight_decay=0.1)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=plan.peak, betas=(0.9, 0.95), fused=True)


def _rate(step: int, plan: Schedule) -> float:
    if step < plan.warmup:
        return plan.peak * (step + 1) / plan.warmup
    done = (step - plan.warmup) / max(1, max(plan.horizon, plan.steps) - plan.warmup)
    line = min(1.0, (plan.steps - step) / min(plan.anneal, plan.steps))
    return plan.peak * line * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


def _windows(tokens: torch.Tensor, plan: Schedule, step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(plan.seed * 1_000_003 + step)
    starts = torch.randint(len(tokens) - plan.length, (plan.batch,), generator=generator)
    return tokens[starts[:, None] + torch.arange(plan.length + 1)]
