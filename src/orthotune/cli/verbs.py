"""The group of commands: their order, ``--debug`` anywhere on the line, and failures as messages."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from inspect import Parameter, Signature
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from orthotune.cli.failures import explain
from orthotune.cli.plain_text import plain

#: The order in ``--help``, from the main commands to the minor ones.
ORDER = (
    "train", "compare", "evaluate", "rewind", "chat", "generate", "draw", "caption", "presets", "inspect", "identify",
    "merge", "combine", "convert", "export", "report", "studio", "demo", "worlds", "toy", "bench",
)  # fmt: skip


class Verbs(TyperGroup):
    """A group of commands whose failures become a message on stderr and an exit status.

    Example:
        >>> typer.Typer(cls=Verbs)  # doctest: +SKIP
    """

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        """The commands in the order of ``ORDER``; others come last."""
        return sorted(super().list_commands(ctx), key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """Parse the command line, with ``--debug`` moved to the front, where the group expects it."""
        if "--debug" in args:
            args = ["--debug", *(argument for argument in args if argument != "--debug")]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]
        """Run the command; a failure becomes a message on stderr and an exit status."""
        try:
            return super().invoke(ctx)
        except typer.Abort:
            raise
        except (Exception, KeyboardInterrupt) as error:
            if hasattr(error, "exit_code"):  # Typer's own: exit, and usage errors
                raise
            if isinstance(error, BrokenPipeError):  # `orthotune inspect ... | head`
                raise
            if ctx.params.get("debug"):
                traceback.print_exc()
            message, status = explain(error)
            typer.echo(plain(message), err=True)  # the message may quote a name from a file
            raise typer.Exit(status) from error


def with_epilogue(text: Callable[[], str]) -> type[TyperCommand]:
    """The class of a command whose help ends with ``text()``, which is called when help is shown.

    Example:
        >>> typer.Typer().command("a", cls=with_epilogue(lambda: "The end."))  # doctest: +SKIP
    """

    class WithEpilogue(TyperCommand):
        def format_help(self, ctx: Any, formatter: Any) -> None:
            super().format_help(ctx, formatter)
            typer.echo(text())

    return WithEpilogue


def with_parameters(
    run: Callable[..., None], parameters: Sequence[Parameter], paragraphs: Sequence[str]
) -> Callable[..., None]:
    """``run`` with the signature and the docstring from which typer makes a command's options and its help.

    Args:
        run: called with the values by name.
        parameters: the arguments and options; a default is what typer knows of one.
        paragraphs: of the help.
    """
    made: Any = run
    made.__signature__ = Signature(list(parameters))
    made.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    made.__doc__ = "\n\n".join(paragraphs)
    return run
