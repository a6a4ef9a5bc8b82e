"""The GGUF file in llama.cpp itself, by the package ``xllamacpp``, beside the merged model in transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from orthotune.operations.export import export
from tests.operations.gguf_file.test_gguf import MODELS, byte_tokenizer, expected, save_adapter, save_base

llama = pytest.importorskip("xllamacpp", reason="llama.cpp comes with pip install xllamacpp")

#: Tokens of prompts, of which some are no complete letters.
PROMPTS = [[17, 33, 80, 101, 9, 64], [250, 4], list(range(2, 40)), [264, 77, 77, 77]]
LISTED = 20


def answers(file: Path) -> list[dict[int, float]]:
    """The log-probabilities that llama.cpp lists for the token after each prompt."""
    params = llama.CommonParams()
    params.model.path, params.n_ctx, params.warmup = str(file), 64, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    server, found, tokens = llama.Server(params), [], byte_tokenizer().get_vocab()
    for prompt in PROMPTS:
        # The chosen token is a letter: nothing is listed for a part of one. What is listed is from before the choice.
        letter = {"temperature": 0, "logit_bias": [[tokens["A"], 1000.0]]}
        done = server.handle_completions({"prompt": prompt, "max_tokens": 1, "logprobs": LISTED, **letter})
        (step,) = done["choices"][0]["logprobs"]["content"]
        found.append({one["id"]: one["logprob"] for one in step["top_logprobs"]})
    return found


def away(model: Any, found: list[dict[int, float]]) -> float:
    """The largest distance of the listed log-probabilities from those of a model of transformers."""
    worst = 0.0
    for prompt, listed in zip(PROMPTS, found, strict=True):
        with torch.no_grad():
            exact = model.eval()(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
        worst = max([worst, *(abs(own - float(exact[token])) for token, own in listed.items())])
    return worst


@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_computes_the_merged_model(name: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    base = save_base(name, tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "adapter")
    done = export(adapter, tmp_path / "out", base, "gguf")
    assert done.gguf is not None and done.gguf.file is not None
    found = answers(tmp_path / "out" / done.gguf.file)
    assert all(len(listed) == LISTED for listed in found)
    merged = expected(base, adapter, tmp_path / "dense", lambda W: W.half().float())
    # llama.cpp rounds what it multiplies with float16 weights to float16, too
    of_merged = away(merged, found)
    of_base = away(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), found)
    print(f"{name}: {of_merged:.4f} from the merged model, {of_base:.4f} from the base")
    assert of_merged < 0.01 < 0.05 < of_base
