"""A small adapted model sharded without a trainer, in each of two processes."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from orthotune import OFTConfig, get_peft_model
from tests.support.tiny_text import make_model

TOKENS = torch.arange(24).view(2, 12)


def adapted(dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    torch.manual_seed(1)
    config = OFTConfig(target_modules="all-linear", oft_block_size=8, init_weights=False, **options)
    return get_peft_model(make_model(64).to(dtype), config)


def sharded(model: Any, **options: Any) -> Any:
    for layer in model.get_base_model().model.layers:
        fully_shard(layer, **options)
    return fully_shard(model, **options)


def error_of(act: Callable[[], Any]) -> str:
    try:
        act()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def step(model: Any, optimizer: Any) -> float:
    loss = model(input_ids=TOKENS, labels=TOKENS).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return float(loss)


def trained(model: Any, steps: int = 3) -> list[float]:
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05, foreach=False)
    return [step(model, optimizer) for _ in range(steps)]


def numbers(model: Any) -> list[torch.Tensor]:
    whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters() if p.requires_grad]
    return [p.detach() for p in whole]


def distance(one: Any, other: Any) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(numbers(one), numbers(other), strict=True))


def shard_by_hand() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, options in OPTIONS.items():
        dtype = torch.bfloat16 if name == "bfloat16 base" else torch.float32
        alone, shared = adapted(dtype, **options), sharded(adapted(dtype, **options))
        found[name] = {"alone": trained(alone), "shared": trained(shared), "distance": distance(alone, shared)}
        found[name]["dtypes"] = sorted({str(p.dtype) for p in shared.parameters() if p.requires_grad})
    model = sharded(adapted())
    model.eval()
    with torch.no_grad():
        before = model(input_ids=TOKENS).logits
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.to_local().zero_()  # as a loaded checkpoint does it: no backward, no train()
        after = model(input_ids=TOKENS).logits
        base = make_model(64)(input_ids=TOKENS).logits
    found["seen"] = {"moved": float((before - base).abs().max()), "after": float((after - base).abs().max())}
    found["merge"] = error_of(model.merge_adapter)
    found["merge layer"] = error_of(next(m for m in model.modules() if hasattr(m, "oft_R")).merge)
    found["adapt sharded"] = error_of(lambda: get_peft_model(sharded_base(), OFTConfig(target_modules=["q_proj"])))
    found["tensor parallel"] = error_of(parallel)
    rounded = sharded(adapted(coft=True, eps=0.5), mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    found["rounded coft"] = error_of(lambda: trained(rounded))
    return found


#: rotations whose stored rows do not divide by two, single shared rows, a ball, a series, scales of outputs
OPTIONS: dict[str, dict[str, Any]] = {
    "exact": {},
    "bfloat16 base": {},
    "coft": {"coft": True, "eps": 0.5},
    "shared": {"block_share": True},
    "series": {"use_cayley_neumann": True, "scaled": True},
    "out": {"side": "out", "magnitude": True},
}


def sharded_base() -> nn.Module:
    return fully_shard(make_model(64))  # type: ignore[return-value]


def parallel() -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.distributed import DistributedConfig

    spread = DistributedConfig(tp_size=2, tp_plan="auto")
    model = AutoModelForCausalLM.from_pretrained(os.environ["TINY_MODEL"], distributed_config=spread)
    return get_peft_model(model, OFTConfig(target_modules=["q_proj", "o_proj"]))
