"""The real engine in this process, a tiny model with biases, adapters on it, and what an engine answers."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tests.support.tiny_text import make_tokenizer

#: In this process, so that a test sees the engine's memory and errors; on one thread, which waits for no other.
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    # The sampler alone is compiled with enforce_eager, which takes longer than all of these tests.
    "TORCHDYNAMO_DISABLE": "1",
}
PROMPTS = ["The with statement", "A list is", "def f(x):", "Once there was", "12 + 30 ="]
TOKENS = 6


class Answer(NamedTuple):
    """Greedy tokens, and the log-probabilities of the likeliest at each step: token -> number."""

    tokens: tuple[int, ...]
    steps: tuple[dict[int, float], ...]

    def off(self, other: Answer) -> float:
        """The largest difference of log-probabilities over the tokens that both list; infinite where there is none."""
        pairs = zip(self.steps, other.steps, strict=True)
        return max((abs(a[token] - b[token]) for a, b in pairs for token in a.keys() & b.keys()), default=math.inf)


def make_base(folder: Path, tied: bool = False) -> Path:
    """A random model of 128 features, four heads with two key heads, and biases in its attention."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=tied, attention_bias=True,
        bos_token_id=0, eos_token_id=0, pad_token_id=1, initializer_range=0.2,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_(std=0.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_adapter(
    base: Path,
    folder: Path,
    seed: int,
    dtype: torch.dtype = torch.float32,
    spread: float = 0.1,
    merge: bool = True,
    **config: Any,
) -> Path:
    """A random OFT adapter as orthotune saves it, and in ``merged`` below its folder the base with it merged in."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from orthotune import OFTConfig, get_peft_model

    config = {"target_modules": "all-linear", "oft_block_size": 32, **config}
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=dtype), OFTConfig(**config))
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += spread * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    model.save_pretrained(folder)
    if merge:
        model.merge_and_unload().save_pretrained(folder / "merged")
        AutoTokenizer.from_pretrained(base).save_pretrained(folder / "merged")
    return folder


def make_lora(base: Path, folder: Path) -> Path:
    """A random LoRA of PEFT."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(r=8, target_modules="all-linear", init_lora_weights=False),
    )
    model.save_pretrained(folder)
    return folder


def start(model: Path, *, adapters: bool = True, **options: Any) -> Any:
    """The engine; with ``adapters``, it takes them as its own flag says."""
    os.environ.update(ENVIRONMENT)
    from vllm import LLM

    options = {
        "dtype": "float32", "max_model_len": 128, "enforce_eager": True, "seed": 0, "max_num_seqs": 16,
        "enable_prefix_caching": False, **options,
    }  # fmt: skip
    if adapters:
        options = {"enable_lora": True, "max_lora_rank": 8, "max_loras": 5, "max_cpu_loras": 6, **options}
    return LLM(str(model), **options)


def request(number: int, path: Path | str) -> Any:
    """The engine's request for an adapter."""
    from vllm.lora.request import LoRARequest

    return LoRARequest(f"adapter-{number}", number, str(path))


def answers(
    engine: Any, prompts: Sequence[str], requests: Sequence[Any] | None = None, tokens: int = TOKENS
) -> list[Answer]:
    """Greedy answers to all prompts in one batch."""
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=tokens, logprobs=5, ignore_eos=True)
    found = engine.generate(
        list(prompts), sampling, lora_request=None if requests is None else list(requests), use_tqdm=False
    )
    return [
        Answer(
            tuple(one.outputs[0].token_ids),
            tuple({token: own.logprob for token, own in step.items()} for step in one.outputs[0].logprobs),
        )
        for one in found
    ]  # fmt: skip


def differences(model: Any, base: Path, found: Sequence[Answer]) -> list[float]:
    """Each listed log-probability of the answers to ``PROMPTS``, minus that of a model of transformers.

    Args:
        model: of transformers or PEFT; it computes the likelihood of the same tokens.
        base: with its tokenizer.
        found: of the engine.
    """
    from transformers import AutoTokenizer

    tokenizer, away = AutoTokenizer.from_pretrained(base), []
    for prompt, answer in zip(PROMPTS, found, strict=True):
        ids = tokenizer(prompt)["input_ids"]
        with torch.no_grad():
            exact = model(torch.tensor([[*ids, *answer.tokens]])).logits[0].log_softmax(-1)
        for number, step in enumerate(answer.steps):
            away += [own - float(exact[len(ids) - 1 + number, token]) for token, own in step.items()]
    return away


def scores(engine: Any, prompt: str, adapter: Any = None) -> list[float]:
    """Log-probabilities of the tokens of a prompt after its first one."""
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    (found,) = engine.generate([prompt], sampling, lora_request=adapter, use_tqdm=False)
    return [next(iter(step.values())).logprob for step in found.prompt_logprobs[1:]]


def manager(engine: Any) -> Any:
    """The engine's manager of adapters."""
    return engine.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner.lora_manager


def unload(engine: Any) -> None:
    """Unload every adapter, so that the next ones take the first slots.

    In this version of the engine, its LoRA for processors adds what the last slot holds to rows of the base.
    """
    for number in list(manager(engine).list_adapters()):
        engine.llm_engine.remove_lora(number)


def stop(engine: Any) -> None:
    """End an engine, so that the next one starts in this process."""
    engine.llm_engine.engine_core.shutdown()
