"""What a person would do next with a finished run: the commands, as they can be typed."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orthotune.files.json_file import read_json
from orthotune.files.run_adapter import IMAGE_RECIPES


def next_steps(run: Mapping[str, Any], folder: Path) -> list[tuple[str, str]]:
    """Up to three commands, each with what it is for.

    Args:
        run: the record of the run.
        folder: its directory.

    Returns:
        ``(command, purpose)``; empty where nothing was trained there.

    Example:
        >>> next_steps({"recipe": "sft", "artifacts": {}}, Path("runs/a"))
        []
    """
    artifacts = run.get("artifacts") or {}
    kept = "adapter" if "adapter" in artifacts else "model" if "model" in artifacts else None
    if kept is None:
        return []
    place = shlex.quote(folder.as_posix())
    if run.get("planned_steps"):
        command = f"orthotune train {run.get('recipe')} resume=auto output={place}"
        return [(command, f"go on to step {run['planned_steps']}"), *_generates(run, place)]
    if run.get("recipe") in IMAGE_RECIPES:
        rotations = kept == "adapter" and run.get("method") in ("oft", "coft")
        looked = [(f"orthotune inspect {place}", "see what it does to each layer")] if rotations else []
        again = (
            []
            if run.get("rewound")
            else [(f"orthotune rewind {place}", "find the strength at which other images change less")]
        )
        return _generates(run, place) + looked + again
    writes = _writes_text(folder / kept, kept)
    steps: list[tuple[str, str]] = []
    if writes:
        both = " --both" if kept == "adapter" else ""
        steps.append((f"orthotune chat {place}{both}", "try it" + (", beside its base" if both else "")))
    elif kept == "adapter":
        steps.append((f"orthotune inspect {place}", "see what it does to each layer"))
    if run.get("recipe") == "sft" and not run.get("rewound"):
        steps.append((f"orthotune rewind {place}", "find the strength at which it forgets less"))
    elif writes and run.get("recipe") == "sft":
        steps.append((f"orthotune chat {place}/rewound/adapter --both", "try the strengths that were chosen"))
    elif kept == "adapter" and writes:
        steps.append((f"orthotune inspect {place}", "see what it does to each layer"))
    if kept == "adapter":
        out = shlex.quote(f"{folder.as_posix()}-merged")
        steps.append((f"orthotune merge {place} --out {out}", "write an ordinary model"))
    return steps


def _generates(run: Mapping[str, Any], place: str) -> list[tuple[str, str]]:
    """The command that generates images with what was trained, beside the base."""
    if run.get("recipe") not in IMAGE_RECIPES or run.get("recipe") == "control":
        return []
    settings = run.get("settings") or {}
    named = [settings.get("instance_prompt"), *(one.get("prompt") for one in settings.get("concepts") or [])]
    prompt = next((one for one in [*(settings.get("sample_prompts") or []), *named] if one), "PROMPT")
    return [
        (f"orthotune draw {place} {shlex.quote(str(prompt))} --strength 0.5,1 --both", "generate with it and without")
    ]


def _writes_text(folder: Path, kept: str) -> bool:
    path = folder / ("adapter_config.json" if kept == "adapter" else "config.json")
    if not path.is_file():
        return False
    config = read_json(path)
    if kept == "adapter":
        return config.get("task_type") == "CAUSAL_LM"
    return any("CausalLM" in str(name) or "LMHead" in str(name) for name in config.get("architectures") or [])
