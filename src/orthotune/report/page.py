"""The page itself: records put into the template, pictures inside it, nothing fetched when it is opened."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orthotune.errors import OutputError
from orthotune.report import wording
from orthotune.report.curves import charts, frontier
from orthotune.report.heat_map import heat_maps, histograms
from orthotune.report.records import Records, read_records

NAME = "report.html"
TEMPLATE = "page.html"

#: Names in the settings that stand for the model inside the package.
EMBEDDED = {"text-world": "text"}


def write_report(run_dir: str | Path, *, adapter: Mapping[str, Any] | None = None) -> Path:
    """Write ``report.html`` into the folder of a run or of a comparison and return its path.

    Args:
        run_dir: holds ``run.json`` or ``comparison.json``, and the pictures drawn from them.
        adapter: what ``orthotune inspect --json`` says, for the table of layers; left out without it.

    Raises:
        DataError: the folder holds no record.
        OutputError: the page cannot be written.

    Example:
        >>> write_report("runs/demo")  # doctest: +SKIP
        PosixPath('runs/demo/report.html')
    """
    records = read_records(run_dir, adapter)
    path, partial = records.folder / NAME, records.folder / f".{NAME}.{os.getpid()}.partial"
    try:
        partial.write_text(render(records), encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise OutputError(f"writing {path}", got=error.strerror or str(error)) from error
    finally:
        partial.unlink(missing_ok=True)
    return path


def render(records: Records) -> str:
    """The page as text; every value from the records is escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("orthotune.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("loss", "change", "perplexity", "small", "count", "duration", "plain"):
        environment.filters[name] = getattr(wording, name)
    rows = [_Lenient(row) for row in records.comparison.get("runs") or []]
    measured = [row for row in rows if row["gain"] is not None and row["forgetting"] is not None]
    return environment.get_template(TEMPLATE).render(
        title=_title(records),
        run=_Lenient(records.run),
        settings=(records.run or records.comparison).get("settings") or {},
        versions=(records.run or records.comparison).get("versions") or {},
        weights=_Lenient(records.run.get("weights") or {}),
        rows=rows,
        best=max(measured, key=lambda row: row["gain"], default=None),
        mildest=min(measured, key=lambda row: row["forgetting"], default=None),
        comparison=_Lenient(records.comparison),
        samples=[_Lenient(sample) for sample in records.samples],
        pictures={name: _data_uri(path) for name, path in records.pictures.items()},
        adapter=_Lenient(records.adapter),
        charts=charts(records.metrics),
        frontier=frontier(rows),
        maps=heat_maps(records.adapter.get("layers") or []),
        histograms=histograms(records.adapter.get("layers") or []),
        advice=records.adapter.get("advice") or [],
        loading=_loading(records),
    )


class _Lenient(dict[str, Any]):
    """A record whose missing entries read as None: an older run may not have measured everything."""

    def __missing__(self, key: str) -> None:
        return None


def _title(records: Records) -> str:
    run = records.run
    if not run and not records.comparison:
        return f"Adapter: {records.folder.name}"
    if not run:
        return f"Comparison: {records.comparison.get('recipe') or records.folder.name}"
    model = (run.get("settings") or {}).get("model")
    return " · ".join(str(part) for part in (str(run.get("method") or "run").upper(), run.get("recipe"), model) if part)


def _data_uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def _loading(records: Records) -> str | None:
    """The lines of Python that load what was trained; None for a comparison."""
    if not records.run:
        return None
    artifacts = records.run.get("artifacts") or {}
    model = str((records.run.get("settings") or {}).get("model") or "path/to/the/base/model")
    if "adapter" not in artifacts:
        trained = records.folder / (artifacts.get("model") or "model")
        return (
            "from transformers import AutoModelForCausalLM\n\n"
            f"model = AutoModelForCausalLM.from_pretrained({trained.as_posix()!r})\n"
        )
    adapter = (records.folder / artifacts["adapter"]).as_posix()
    world = EMBEDDED.get(model)
    return (
        "from orthotune import PeftModel\n"
        + (f"from orthotune.worlds import {world}\n" if world else "")
        + "from transformers import AutoModelForCausalLM\n\n"
        + f"model = AutoModelForCausalLM.from_pretrained({f'{world}.MODEL' if world else repr(model)})\n"
        + f"model = PeftModel.from_pretrained(model, {adapter!r})\n"
        + "model = model.merge_and_unload()  # optional: an ordinary model again\n"
    )
