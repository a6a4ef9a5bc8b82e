"""Answers of the engine without the plug-in, as JSON: ``python -m tests.vllm.run_stock MODEL LORA``."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

if __name__ == "__main__":
    os.environ["VLLM_PLUGINS"] = ""
    from tests.vllm.engines import PROMPTS, answers, request, start

    model, lora = map(Path, sys.argv[1:])
    engine = start(model)
    mixed = [None, request(1, lora), None, request(1, lora), None]
    print("ANSWERS", json.dumps([answers(engine, PROMPTS), answers(engine, PROMPTS, mixed)]))
