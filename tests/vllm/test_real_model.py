"""A real model in bfloat16: served and merged, beside the computation in float32 that both round."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from orthotune.files.installed_worlds import SMOLLM2, cached_model
from tests.vllm.engines import PROMPTS, Answer, answers, differences, make_adapter, request, start, stop

BASE = cached_model(SMOLLM2)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]
OPTIONS = {"dtype": "bfloat16", "max_model_len": 512, "max_num_batched_tokens": 512}


@pytest.mark.skipif(not BASE.is_dir(), reason=f"{SMOLLM2} is not in the cache: orthotune worlds get {SMOLLM2}")
def test_served_is_as_near_to_float32_as_merged(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from orthotune import PeftModel

    paths = [
        make_adapter(BASE, tmp_path / str(n), n, dtype=torch.bfloat16, spread=0.02, merge=n == 0) for n in range(8)
    ]
    engine = start(BASE, max_loras=9, max_cpu_loras=9, **OPTIONS)
    base = answers(engine, PROMPTS)
    assert answers(engine, PROMPTS) == base, "the base itself differs from run to run"
    first = request(1, paths[0])
    served = answers(engine, PROMPTS, [first] * len(PROMPTS))
    mixed = answers(engine, PROMPTS, [first, None, first, None, first])
    assert [mixed[1], mixed[3]] == [base[1], base[3]], "rows of the base have other bits"
    assert [mixed[0], mixed[2], mixed[4]] == [served[0], served[2], served[4]]
    eight = [request(n + 1, path) for n, path in enumerate(paths)]
    assert len({answer.tokens for answer in answers(engine, [PROMPTS[0]] * 8, eight)}) > 4
    stop(engine)
    engine = start(paths[0] / "merged", adapters=False, **OPTIONS)
    merged = answers(engine, PROMPTS)
    stop(engine)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32), paths[0]).eval()
    away, of_merged = _away(model, served), _away(model, merged)
    print(f"from float32: served {away:.4f}, merged {of_merged:.4f}")
    # Both round to eight bits at every layer, in other places: two samples of one noise.
    assert away < 1.5 * of_merged


def _away(model: Any, found: Sequence[Answer]) -> float:
    """Root mean square distance of the listed log-probabilities from those of a model on the same tokens."""
    away = differences(model, BASE, found)
    return math.sqrt(sum(one**2 for one in away) / len(away))
