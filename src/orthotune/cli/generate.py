"""``orthotune generate``: let a run, an adapter or a model answer prompts."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from orthotune.cli import model_options as given


def generate(
    source: str = given.SOURCE,
    prompts: list[str] = typer.Argument(None, metavar="[PROMPT]...", help="Texts to answer, each one alone."),
    file: Path = typer.Option(
        None, "--prompts", "-f", help="File of prompts: one in each line, or in `prompt` of each line of a .jsonl."
    ),
    base: str = given.BASE,
    both: bool = given.BOTH,
    strength: float = given.STRENGTH,
    system: str = given.SYSTEM,
    plain: bool = given.PLAIN,
    max_tokens: int = given.MAX_TOKENS,
    temperature: float = given.TEMPERATURE,
    top_p: float = given.TOP_P,
    top_k: int = given.TOP_K,
    penalty: float = given.PENALTY,
    seed: int = given.SEED,
    dtype: str = given.DTYPE,
    quantization: str = given.QUANTIZATION,
    as_json: bool = typer.Option(False, "--json", help="Print one JSON list."),
) -> None:
    """Let a run, an adapter or a model answer prompts, with the adapter and without.

    Prompts go through the chat template; a model without one continues them.

    Examples:

      orthotune generate text-world "The with statement is used to" --max-tokens 40

      orthotune generate runs/sft-oft "Who are you?" --both --strength 0.5

      orthotune generate runs/sft-oft --prompts questions.txt --json > answers.json
    """
    from orthotune.operations.generate import generate as operation
    from orthotune.operations.generation.decoding import Decoding
    from orthotune.runs.quiet import quiet

    asked = [*(prompts or []), *(read_prompts(file) if file else [])]
    decoding = Decoding(max_tokens, temperature, top_p, top_k, penalty, seed)
    headed: set[tuple[int, bool]] = set()

    def write(number: int, on: bool, text: str) -> None:
        if (number, on) not in headed:
            if headed:
                typer.echo("\n")
            if both or len(asked) > 1:
                side = f"strength {strength:g}" if on else "off"
                typer.echo(f"[{number + 1}{f', adapter {side}' if both else ''}] {asked[number]}")
            headed.add((number, on))
        given.show(text)

    with quiet():
        found = operation(
            source, asked, both=both, strength=strength, system=system, plain=plain, decoding=decoding,
            write=None if as_json else write, base=base, dtype=given.check_dtype(dtype), quantization=quantization,
        )  # fmt: skip
    if as_json:
        from dataclasses import asdict

        typer.echo(json.dumps([asdict(one) for one in found], indent=2))
    else:
        typer.echo("")


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file: its lines that are not blank, or ``prompt`` of the lines of a ``.jsonl``.

    Args:
        path: the file.

    Raises:
        DataError: no such file, a line without ``prompt``, or no prompt in it.
    """
    from orthotune.errors import DataError
    from orthotune.files.json_file import read_json_lines

    try:
        if path.suffix == ".jsonl":
            rows = list(read_json_lines(path))
            for number, row in rows:
                if not isinstance(row.get("prompt"), str):
                    raise DataError(
                        f"{path}, line {number}", got=f"the keys {', '.join(row)}", needed="a text `prompt`"
                    )
            found = [row["prompt"] for _, row in rows]
        else:
            found = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as fault:
        got = getattr(fault, "strerror", None) or "no text in UTF-8"
        raise DataError(f"prompts in {path}", got=got.lower(), needed="a readable file of prompts") from fault
    if not found:
        raise DataError(f"prompts in {path}", got="no line with text")
    return found
