"""The command-line options of the verbs that let a model write, the same in each of them."""

from __future__ import annotations

import typer

from orthotune.cli.plain_text import plain

SOURCE = typer.Argument(metavar="RUN|ADAPTER|MODEL", help="Directory of a run, an adapter, or a model: path, hub name, "
                        "text-world or smollm2.")  # fmt: skip
BASE = typer.Option(None, "--base", "-b", help="Base of an adapter. Default: that of the run, or the recorded one.")
STRENGTH = typer.Option(1.0, "--strength", "-t", help="Of the adapter: 0 is the base, 1 the adapter as trained.")
BOTH = typer.Option(False, "--both", help="Answer without the adapter, too.")
SYSTEM = typer.Option(None, "--system", help="System prompt.")
PLAIN = typer.Option(False, "--plain", help="Continue the text as it is, without the chat template.")
MAX_TOKENS = typer.Option(256, "--max-tokens", help="The most tokens of an answer.")
TEMPERATURE = typer.Option(0.0, "--temperature", help="0 takes the likeliest token each time; above, they are sampled.")
TOP_P = typer.Option(1.0, "--top-p", help="Sample among the likeliest tokens of this total probability.")
TOP_K = typer.Option(0, "--top-k", help="Sample among so many likeliest tokens; 0 among all.")
PENALTY = typer.Option(1.0, "--repetition-penalty", help="Above 1, tokens that occurred before are less likely.")
SEED = typer.Option(0, "--seed", help="Of the sampling.")
DTYPE = typer.Option("auto", "--dtype", help="auto, float32, bfloat16 or float16. auto: float32 without a GPU.")
QUANTIZATION = typer.Option(None, "--quantization", help="Of the base, as nf4. Default: that of the run.")


def check_dtype(dtype: str) -> str:
    """``dtype``, if a model can be loaded in it.

    Raises:
        ConfigError: another word.
    """
    from orthotune.errors import ConfigError

    known = ("auto", "float32", "bfloat16", "float16")
    if dtype not in known:
        raise ConfigError(f"--dtype {dtype}", needed=", ".join(known))
    return dtype


def show(text: str) -> None:
    """Print a piece of a model's text at once; control characters but line ends and tabs are escaped."""
    typer.echo("\t".join(plain(part) for part in text.split("\t")), nl=False)
