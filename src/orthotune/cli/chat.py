"""``orthotune chat``: a dialogue with a run, an adapter or a model."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import typer

from orthotune.cli import model_options as given


def chat(
    source: str = given.SOURCE,
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
) -> None:
    """Talk with a run, an adapter or a model; lines may come from a pipe.

    Commands within: /reset, /strength 0.5, /off, /on, /both, /system TEXT, /help, /quit. Ctrl-C stops an answer, and at
    the prompt the chat, as Ctrl-D does.

    Examples:

      orthotune chat runs/sft-oft

      orthotune chat smollm2 --temperature 0.7 --system "Answer in one sentence."
    """
    from orthotune.operations.chat import chat as operation
    from orthotune.operations.generation.decoding import Decoding
    from orthotune.operations.generation.open_model import open_model
    from orthotune.runs.quiet import quiet

    decoding = Decoding(max_tokens, temperature, top_p, top_k, penalty, seed)
    with quiet():
        opened = open_model(source, base=base, dtype=given.check_dtype(dtype), quantization=quantization)
        terminal = sys.stdin.isatty()
        if terminal:
            adapter = f"adapter on, strength {strength:g}" if opened.adapted else "no adapter"
            template = "chat template" if opened.has_template and not plain else "text is continued, no chat template"
            typer.echo(f"{opened.base}, {adapter}, {template}. /help lists the commands, /quit ends.")
        operation(
            opened, _typed() if terminal else sys.stdin, given.show,
            strength=strength, both=both, system=system, plain=plain, decoding=decoding,
        )  # fmt: skip


def _typed() -> Iterator[str]:
    """The lines of a terminal, until Ctrl-D or Ctrl-C at the prompt."""
    while True:
        try:
            yield input("> ")
        except (EOFError, KeyboardInterrupt):
            typer.echo("")
            return
