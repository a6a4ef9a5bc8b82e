"""``orthotune inspect``: the contents of an adapter and its rotation angles, layer by layer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from orthotune.cli.plain_text import plain
from orthotune.cli.reading import BOFT_CONV, COFT, EPS, PROJECT, SERIES, read_options

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def inspect(
    adapter: Path = typer.Argument(help="Adapter: a folder as PEFT writes it, or one file of any format."),
    base: str = typer.Option(
        None, "--base", "-b", help="Base model, to measure its weights as well: a path or a hub name."
    ),
    compare: Path = typer.Option(
        None, "--compare", help="Another adapter: print the angle between both, layer by layer."
    ),
    series: str = SERIES,
    coft: bool = COFT,
    eps: float = EPS,
    project: str = PROJECT,
    boft_conv: str = BOFT_CONV,
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object instead of a table."),
) -> None:
    """Show blocks, sides, parameters, rotation angles and orthogonality of an adapter, layer by layer, and warnings.

    Example: orthotune inspect runs/demo/adapter
    """
    if compare is not None and base is not None:
        raise typer.BadParameter("--compare compares two adapter files and does not use --base")
    from orthotune.operations.distance import distance
    from orthotune.operations.inspect import inspect as inspected

    options = read_options(series, coft, eps, project, boft_conv)
    if compare is not None:
        _show_distance(plain(distance(adapter, compare, **options)), as_json)
        return
    facts = plain(inspected(adapter, base=base, **options))
    if as_json:
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=140)  # a file or a pipe has no width, and names must not be cut
    (_print_lora if facts["format"].endswith("-lora") else _print)(facts, console)


def _show_distance(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    rows = found["layers"]
    for row in rows:
        name = f"{row['layer']} ({row['part']})" if row["part"] else row["layer"]
        cosine = "" if row["cosine"] is None else f"   cosine {row['cosine']:+.3f}"
        typer.echo(f"{name:<48} {row['angle_mean']:.4f} rad on average, {row['angle_max']:.4f} at most{cosine}")
    typer.echo(f"{len(rows)} rotations, {sum(row['angle_mean'] for row in rows) / len(rows):.4f} rad apart on average")
    if found["only_in_one"]:
        typer.echo(f"Layers of only one adapter, or with another side: {', '.join(found['only_in_one'])}")


def _print_lora(facts: dict[str, Any], console: Console) -> None:
    from rich.markup import escape
    from rich.table import Table

    console.print(facts["adapter"], style="bold", highlight=False, markup=False)
    console.print("format        LoRA of PEFT, which has no rotations: no angles are measured", highlight=False)
    console.print(f"base model    {facts['base_model'] or 'not recorded'}", highlight=False, markup=False)
    table = Table(header_style="bold")
    table.add_column("layer", overflow="fold")
    for name in ("rank", "scale", "parameters", "norm of the change"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in facts["layers"]:
        cells = str(row["rank"]), f"{row['scale']:g}", f"{row['parameters']:,}", f"{row['change']:.4f}"
        table.add_row(escape(row["layer"]), *cells)
    console.print(table)
    if facts["other_tensors"]:
        console.print(f"Other tensors saved: {', '.join(facts['other_tensors'])}", highlight=False, markup=False)
    console.print(f"[bold]{facts['parameters']:,} parameters[/] in {len(facts['layers'])} layers", highlight=False)


def _print(facts: dict[str, Any], console: Console) -> None:
    series = "" if facts["terms"] is None else f" with {facts['terms']} terms"
    coft = "" if facts["coft_eps"] is None else f", COFT eps {facts['coft_eps']:g}"
    scaled = ", scaled parameters" if facts["scaled"] else ""
    beyond = facts["beyond_stock_peft"]
    console.print(facts["adapter"], style="bold", highlight=False, markup=False)
    console.print(f"format        {facts['format']}", highlight=False)
    console.print(f"base model    {facts['base_model'] or 'not recorded'}", highlight=False, markup=False)
    if facts["transform"] not in ("blocks", "none"):
        console.print(f"transform     {facts['transform']}", highlight=False)
    console.print(f"map           {facts['map']}{series}{coft}{scaled}", highlight=False)
    stock = f"cannot load it, because of {', '.join(beyond)}" if beyond else "can load it"
    stock = "another format, see `orthotune convert`" if beyond is None else stock
    console.print(f"stock PEFT    {stock}", highlight=False, markup=False)
    console.print(_table(facts))
    if facts["magnitudes"]:
        console.print(f"{facts['magnitudes']} layers have a trained magnitude per output neuron.", highlight=False)
    if facts["transforms"]:
        console.print(
            f"{len(facts['transforms'])} layers are applied as exact transforms: no single rotation equals them.",
            highlight=False,
        )
    for one in facts["advice"]:
        layers = one["layers"][:3] + (["..."] if len(one["layers"]) > 3 else [])
        text = f"Warning: {one['warning']} ({', '.join(layers)}). {one['remedy']}."
        console.print(text, style="yellow", highlight=False, markup=False)
    for warning in facts["warnings"]:
        console.print(f"Note: {warning}.", style="yellow", highlight=False, markup=False)
    if facts["other_tensors"]:
        console.print(f"Other tensors saved: {', '.join(facts['other_tensors'])}", highlight=False, markup=False)
    console.print(
        f"[bold]{facts['parameters']:,} parameters[/] in {len(facts['layers'])} rotations; "
        f"angles {facts['angle_mean']:.4f} rad on average, {facts['angle_max']:.4f} at most; "
        f"orthogonality error {facts['orthogonality_error']:.1e} at most",
        highlight=False,
    )
    if facts["map"] != "exact" and facts["orthogonality_error"] > 1e-3:
        console.print(
            "The matrices of the Neumann series are not orthogonal any more: train with use_cayley_neumann=False.",
            style="yellow",
            highlight=False,
        )


def _table(facts: dict[str, Any]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(header_style="bold")
    table.add_column("layer", overflow="fold")
    for name in ("side", "blocks"):
        table.add_column(name, no_wrap=True)
    for name in ("parameters", "angle max", "angle mean", "‖RRᵀ-I‖"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in facts["layers"]:
        name = f"{row['layer']} ({row['part']})" if row["part"] else row["layer"]
        blocks = f"{row['block_size']}, shared" if row["shared"] else f"{row['blocks']} × {row['block_size']}"
        angles = f"{row['angle_max']:.4f}", f"{row['angle_mean']:.4f}"
        error = f"{row['orthogonality_error']:.1e}"
        table.add_row(escape(name), row["side"], blocks, f"{row['parameters']:,}", *angles, error)
    return table
