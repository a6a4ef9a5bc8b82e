"""``orthotune demo``: the main jobs on the built-in models: text, merged and reported, then images of a subject."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from orthotune.cli import demo_subject

#: The beginning of a typical sentence of the target domain, prose about Python; the source domain is Python code.
PROMPT = "The with statement is used to"
NEW_TOKENS = 40


def demo(
    out: Path = typer.Option(
        Path("runs/demo"), "--out", "--output", "-o", help="Output folder; if it exists, a number is added to its name."
    ),
    steps: int = typer.Option(None, min=1, help="Training steps of each part. Default: those of the presets."),
) -> None:
    """Finetune the built-in language model, merge and report it; teach the built-in image model a subject.

    Takes some minutes on two cores and downloads nothing. Both parts write a report.

    Example: orthotune demo
    """
    from orthotune.cli.report import report_on
    from orthotune.files.json_file import write_json
    from orthotune.operations.base_model import WORLD
    from orthotune.operations.merge import merge
    from orthotune.recipes import sft
    from orthotune.recipes.settings import SFTSettings
    from orthotune.runs.quiet import quiet

    folder = free_folder(out)
    if folder != out:
        typer.echo(f"{out} holds an earlier run; this one goes to {folder}")
    given: dict[str, Any] = {"preset": WORLD, "output": folder, "steps": steps}
    record = sft.run(SFTSettings(**given), say=typer.echo)

    typer.echo("merging")
    with quiet():
        merged = merge(folder / "adapter", folder / "merged", base=WORLD)
        before, after = (_continuation(model) for model in (WORLD, merged))
    sample = [{"prompt": PROMPT, "before": before, "after": after}]
    write_json(folder / "samples.json", sample, ascii_only=False)
    page = report_on(folder)

    typer.echo("")
    typer.echo(_outcome("learned", "unseen prose (target domain)", record.new_before, record.new_after, record.gain))
    typer.echo(_outcome("forgotten", "code (source domain)", record.old_before, record.old_after, record.forgetting))
    typer.echo("")
    typer.echo(f"before        {PROMPT}{_one_line(before)}")
    typer.echo(f"after         {PROMPT}{_one_line(after)}")
    typer.echo("")
    typer.echo(f"adapter       {folder / 'adapter'}")
    typer.echo(f"merged model  {merged}")
    typer.echo(f"report        {page}")
    typer.echo("")
    demo_subject.demo_subject(folder / "subject", steps)


def free_folder(wanted: Path) -> Path:
    """``wanted`` if no file or filled folder is there, otherwise the first free name of ``wanted-2``, ``wanted-3``, ...

    Example:
        >>> free_folder(Path("no/such/folder"))
        PosixPath('no/such/folder')
    """
    folder, number = wanted, 1
    while folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder


def _outcome(label: str, where: str, before: Any, after: Any, change: Any) -> str:
    from orthotune.report import wording

    losses = f"{wording.loss(before)} to {wording.loss(after)}"
    return f"{label:<13} {wording.change(change)} nats per token on {where} ({losses})"


def _continuation(model: str | Path) -> str:
    """The model's greedy continuation of the prompt."""
    import torch

    from orthotune.operations.base_model import load_base

    loaded = load_base(str(model), "float32")
    tokenizer = loaded.companions[0]
    prompt = tokenizer(PROMPT, return_tensors="pt", return_token_type_ids=False)
    with torch.inference_mode():
        tokens = loaded.model.eval().generate(
            **prompt, max_new_tokens=NEW_TOKENS, do_sample=False, repetition_penalty=1.2
        )
    return str(tokenizer.decode(tokens[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))


def _one_line(text: str) -> str:
    text = " ".join(text.split()) if text.strip() else text.strip()
    return (" " if text else "") + (text if len(text) <= 100 else text[:99].rstrip() + "…")
