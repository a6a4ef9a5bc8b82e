"""The model card of what a run trained: base, data, method, numbers before and after, how to load it, versions."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from orthotune.files.installed_worlds import MODEL_WORDS
from orthotune.runs.record import RunRecord

#: What a domain or figure is called in the table.
LOSSES = (
    ("target domain (learned)", "new_before", "new_after"),
    ("source domain (forgotten)", "old_before", "old_after"),
)
#: Settings that name data, in the order of the card.
DATA = ("data", "eval_data", "old_data", "keep_data")


def model_card(
    record: RunRecord,
    samples: Sequence[Mapping[str, str]] = (),
    config: Mapping[str, Any] | None = None,
    writes: bool = True,
) -> str:
    """The text of ``README.md`` beside an adapter or a model. What comes from files or users is escaped.

    Args:
        record: of the run.
        samples: ``prompt``, ``before`` and ``after`` of some texts.
        config: the adapter's; None after full finetuning.
        writes: whether the model writes texts; others have a head, and the class that their config names.

    Returns:
        Markdown with the header that the hub reads.

    Example:
        >>> model_card(record).splitlines()[0]  # doctest: +SKIP
        '---'
    """
    settings, base = record.settings, str(record.settings.get("model", "unknown"))
    header: dict[str, Any] = {"base_model": base, "library_name": "peft" if config else "transformers"}
    if writes:
        header["pipeline_tag"] = "text-generation"
    header["tags"] = ["orthotune", record.method, record.recipe, *(["base_model:adapter:" + base] if config else [])]
    what = {"oft": "orthogonal finetuning (OFT)", "coft": "constrained orthogonal finetuning (COFT)", "lora": "LoRA"}
    parts = [
        "---\n" + yaml.safe_dump(header, sort_keys=False, allow_unicode=False) + "---",
        f"# {_text(base)}, trained by {what.get(record.method, 'full finetuning')}",
        f"{'An adapter' if config else 'A model'} by the recipe `{record.recipe}` of orthotune: "
        f"{record.trainable_parameters:,} of {record.total_parameters:,} parameters were trained, in "
        f"{record.steps} steps.",
        "## Before and after", *_numbers(record),
        *(["### Samples", *map(_sample, samples)] if samples else []),
        "## Load it", *_loading(base, config, writes),
        "## Data", *_data(record),
        "## Method", _table([(key, value) for key, value in settings.items() if key not in (*DATA, "output")]),
        "## Versions", ", ".join(f"{_text(name)} {_text(version)}" for name, version in record.versions.items()) + ".",
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _numbers(record: RunRecord) -> list[str]:
    rows = ["| held out | before | after | change |", "|---|---|---|---|"]
    for name, before, after in LOSSES:
        rows += _row(f"{name}, nats per token", getattr(record, before), getattr(record, after))
    for name, value in record.scores_after.items():
        rows += _row(_text(name), record.scores_before.get(name), value)
    found = ["\n".join(rows)] if len(rows) > 2 else ["Nothing was measured on held-out data."]
    if record.drift is not None:
        found.append(f"Drift, KL(base || trained) on the source domain: {record.drift:.4g} nats per token.")
    return found


def _row(name: str, before: float | None, after: float | None) -> list[str]:
    if before is None or after is None:
        return []
    return [f"| {name} | {before:.3f} | {after:.3f} | {after - before:+.3f} |"]


def _sample(sample: Mapping[str, str]) -> str:
    texts = [("prompt", sample["prompt"]), ("before", sample["before"]), ("after", sample["after"])]
    return "\n".join(
        ["| | |", "|---|---|", *(f"| {name} | {_text(text.strip() or '(nothing)')} |" for name, text in texts)]
    )


def _loading(base: str, config: Mapping[str, Any] | None, writes: bool) -> list[str]:
    if not writes:
        merged = "" if config is None else "`orthotune merge PATH --out MERGED` writes a complete model. "
        return [f"{merged}The class of the model is what its `config.json` names under `architectures`."]
    if config is None:
        code = 'from transformers import AutoModelForCausalLM\n\nmodel = AutoModelForCausalLM.from_pretrained("PATH")'
        return [f"```python\n{code}\n```", "On the command line: `orthotune chat PATH`, with the path of this folder."]
    name = json.dumps(base).replace("`", "\\u0060")
    name = f"model_folder({name})" if base in MODEL_WORDS else name
    world = "from orthotune.files.installed_worlds import model_folder\n" if base in MODEL_WORDS else ""
    start = f"{world}from transformers import AutoModelForCausalLM\n\n"
    start += f"model = AutoModelForCausalLM.from_pretrained({name})\n"
    own = f'from orthotune import PeftModel\n{start}model = PeftModel.from_pretrained(model, "PATH")'
    plain = own.replace("from orthotune import PeftModel", "from peft import PeftModel")
    ours = config.get("peft_type") != "LORA" and (config.get("magnitude") or config.get("layer_settings"))
    note = (
        "PEFT alone does not read the magnitudes of this adapter: `orthotune convert` writes what it can hold."
        if ours
        else "With PEFT alone:\n\n```python\n" + plain + "\n```"
    )
    return [f"```python\n{own}\n```", note, "On the command line: `orthotune chat PATH`, with the path of this folder."]


def _data(record: RunRecord) -> list[str]:
    rows = [(key, record.settings[key]) for key in DATA if record.settings.get(key) is not None]
    found = [_table(rows)] if rows else ["Not recorded."]
    if counts := record.data.get("train"):
        found.append(
            "Learned from: "
            + ", ".join(f"{value:,} {_text(key.replace('_', ' '))}" for key, value in counts.items())
            + "."
        )
    return found


def _table(rows: Sequence[tuple[str, Any]]) -> str:
    shown = [
        f"| {_text(key)} | {_text(value if isinstance(value, str) else json.dumps(value))} |" for key, value in rows
    ]
    return "\n".join(["| setting | value |", "|---|---|", *shown])


def _text(value: Any) -> str:
    """Text of a user or a file, on one line, without a meaning in Markdown or HTML."""
    line = " ".join("".join(mark if mark.isprintable() or mark.isspace() else "?" for mark in str(value)).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]|#!~$])", r"\\\1", line)
