"""``orthotune identify``: the format of an adapter file, and the formats it can be converted to."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from orthotune.cli.plain_text import plain
from orthotune.cli.reading import BOFT_CONV, COFT, EPS, PROJECT, SERIES, read_options


def identify(
    adapter: Path = typer.Argument(
        help="Adapter: a file, or a folder with adapter_config.json; or a settings file (YAML), or a preset."
    ),
    series: str = SERIES,
    coft: bool = COFT,
    eps: float = EPS,
    project: str = PROJECT,
    boft_conv: str = BOFT_CONV,
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object instead of text."),
) -> None:
    """Print the format, probable producer, side and blocks of an adapter file, and the formats it can be converted to.

    Of a settings file or a preset: the formats that an adapter trained with it can be converted to.

    Example: orthotune identify style.safetensors
    """
    import json

    from orthotune.recipes.what_it_becomes import is_settings, what_it_becomes

    if is_settings(adapter):
        before = asdict(what_it_becomes(adapter))
        for line in [json.dumps(before, indent=2)] if as_json else lines_before(before):
            typer.echo(line)
        return
    from orthotune.operations.identify import identify as identified

    facts = plain(asdict(identified(adapter, **read_options(series, coft, eps, project, boft_conv))))
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    for name, text in lines(facts):
        typer.echo(f"{name:<14} {text}")


def lines_before(facts: dict[str, Any]) -> list[str]:
    """The lines about settings, before anything is trained.

    Example:
        >>> lines_before({"source": "a.yaml", "method": "lora", "kind": None, "conversions": {}})[1]
        'trains         lora, which is no rotation'
    """
    found = [f"{'settings':<14} {facts['source']}"]
    if facts["kind"] is None:
        return [*found, f"{'trains':<14} {facts['method']}, which is no rotation"]
    found.append(f"{'trains':<14} {facts['method']}: {facts['kind']}, in linear layers")
    for verdict in ("lossless", "approximate", "impossible"):
        targets = [name for name, one in facts["conversions"].items() if one == verdict]
        found += [f"{verdict:<14} {', '.join(targets)}"] if targets else []
    if facts["conversions"].get("comfyui") == "impossible":
        found.append(f"{'to change':<14} for=comfyui trains rotations of outputs, which ComfyUI and LyCORIS load")
    return found


def lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """The facts as lines of two columns.

    Example:
        >>> from orthotune.operations.identify import identify
        >>> lines(asdict(identify("style.safetensors")))[0]  # doctest: +SKIP
        ('file', 'style.safetensors')
    """
    sizes = facts["block_sizes"].items()
    lines = [
        ("file", facts["path"]),
        ("format", facts["format"]),
        ("producer", facts["producer"] + "".join(f"; {name} {value}" for name, value in facts["said"].items())),
        ("layers", f"{facts['layers']}: " + ", ".join(f"{n} {kind}" for kind, n in facts["kinds"].items())),
        ("side", " and ".join(facts["sides"])),
        ("blocks", f"{facts['blocks']}, by size: " + ", ".join(f"{count} of {size}" for size, count in sizes))
        if sizes
        else ("", ""),
        ("shared", f"{facts['shared']} layers use one block for all of their features")
        if facts["shared"]
        else ("", ""),
        ("parameters", f"{facts['parameters']:,}"),
        ("orthogonality", f"{facts['orthogonality_error']:.1e} from orthogonal at most")
        if facts["orthogonality_error"] is not None
        else ("", ""),
        ("COFT", f"eps {facts['coft_eps']:g}") if facts["coft_eps"] is not None else ("", ""),
        ("dtypes", ", ".join(f"{dtype} in {count} tensors" for dtype, count in facts["dtypes"].items())),
    ]
    for verdict in ("lossless", "approximate", "impossible"):
        targets = [name for name, found in facts["conversions"].items() if found == verdict]
        targets = [f"{name} (needs --base)" if name in facts["needs_base"] else name for name in targets]
        lines.append((verdict, ", ".join(targets)))
    lines += [("note", warning) for warning in facts["warnings"]]
    return [(name, text) for name, text in lines if text]
