"""The HTML page: the template filled with the records; images are embedded, so that nothing is fetched."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orthotune.errors import DataError
from orthotune.files.atomic import write_bytes
from orthotune.files.run_adapter import IMAGE_RECIPES
from orthotune.report import wording
from orthotune.report.comparison import comparison
from orthotune.report.curves import charts
from orthotune.report.gain import gain_and_forgetting, rewound
from orthotune.report.heat_map import DISTANCES, heat_maps
from orthotune.report.histograms import histograms
from orthotune.report.loading import loading
from orthotune.report.next_steps import next_steps
from orthotune.report.records import Records, read_records
from orthotune.report.samples import data_uri, frames
from orthotune.report.scores import scores

NAME = "report.html"
TEMPLATE = "page.html"
#: PNG files that are not shown where the page plots the same data itself: the loss curve, and samples by step
INLINE = ("curve", "samples")
#: PNG files that the page shows at a place of their own.
PLACED = ("training",)


def write_report(
    run_dir: str | Path, *, adapter: Mapping[str, Any] | None = None, compared: Mapping[str, Any] | None = None
) -> Path:
    """Write ``report.html`` into the folder of a run or of a comparison and return its path.

    Args:
        run_dir: folder with ``run.json`` or ``comparison.json``, and the plots of the run.
        adapter: output of ``orthotune inspect --json``, for the table of layers; None for no table.
        compared: output of ``orthotune inspect --compare --json``, for the distance of two adapters.

    Raises:
        DataError: the folder holds no record, or a record that cannot be read.
        OutputError: the page cannot be written.

    Example:
        >>> write_report("runs/demo")  # doctest: +SKIP
        PosixPath('runs/demo/report.html')
    """
    records = read_records(run_dir, adapter, compared)
    page = render(records)
    path = records.folder / NAME
    # JSON can hold unpaired surrogates, which cannot be encoded as UTF-8.
    write_bytes(path, page.encode("utf-8", errors="replace"))
    return path


def render(records: Records) -> str:
    """The page as text; every value from the records is escaped.

    Raises:
        DataError: a record holds a value of the wrong type, such as text instead of a number.
    """
    import jinja2

    try:
        return environment().get_template(TEMPLATE).render(values(records))
    except (TypeError, ValueError, KeyError, AttributeError, jinja2.UndefinedError) as error:
        raise DataError(
            f"the records in {records.folder}", got=str(error), needed="what the run wrote", do="Run the training again"
        ) from error


def environment(*packages: str) -> Any:
    """The templates of the page, which escape every value, with its filters.

    Args:
        packages: further packages with templates, which go before those of the page.
    """
    import jinja2

    loaders = [jinja2.PackageLoader(package, ".") for package in (*packages, "orthotune.report")]
    made = jinja2.Environment(
        loader=jinja2.ChoiceLoader(loaders),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("loss", "change", "perplexity", "small", "count", "duration", "plain", "figure", "spoken"):
        made.filters[name] = getattr(wording, name)
    made.filters["zip"] = zip
    return made


def values(records: Records) -> dict[str, Any]:
    """What the templates show of the records of a folder.

    Args:
        records: of a run, finished or not, of a comparison, or of an adapter.
    """
    run, layers = records.run, records.adapter.get("layers") or []
    pictured = run.get("recipe") in IMAGE_RECIPES
    plotted, skipped = frames(records.samples, records.folder)
    scored = scores(run)
    # Losses and margins of answers have another unit than the shares of right ones on the same axis.
    shares = [row["name"] for row in scored if not row["name"].endswith(("_nats", "_margin", "_loss"))]
    curves = charts(records.metrics, shares)
    hidden = {name for name, there in zip(INLINE, (curves, plotted), strict=True) if there}
    return {
        "title": _title(records),
        "run": Lenient(run),
        "settings": (run or records.comparison).get("settings") or {},
        "versions": (run or records.comparison).get("versions") or {},
        "weights": Lenient(run.get("weights") or {}),
        "scores": scored,
        "nats": run.get("new_before") is not None or (not scored and run.get("recipe") in (None, "sft")),
        "unscored": bool(run) and not scored and run.get("recipe") not in (None, "sft"),
        "charts": curves,
        "gained": gain_and_forgetting(records.metrics),
        "rewound": rewound(run),
        "frames": plotted,
        "skipped": skipped,
        "texts": [Lenient(sample) for sample in records.samples if "step" not in sample],
        "images": {name: data_uri(path.read_bytes()) for name, path in records.images.items() if name not in hidden},
        "placed": PLACED,
        "held_loss": any(row["name"].endswith("held_out_loss") for row in scored),
        "scored_images": any(not row["name"].endswith("held_out_loss") for row in scored),
        "pictured": pictured,
        "unit": "units of the denoiser's loss" if pictured else "nats per token",
        "held_out": "images" if pictured else "text",
        "comparison": comparison(records.comparison),
        "adapter": Lenient(records.adapter),
        "maps": heat_maps(layers),
        "histograms": histograms(layers, records.adapter.get("angle_top")),
        "advice": [Lenient(one) for one in records.adapter.get("advice") or []],
        "compared": Lenient(records.compared),
        "distances": heat_maps(records.compared.get("layers") or [], DISTANCES),
        "loading": loading(records),
        "next_steps": next_steps(run, records.folder) if run else [],
    }


class Lenient(dict[str, Any]):
    """A record whose missing entries read as None: an older run may not have measured everything."""

    def __missing__(self, key: str) -> None:
        return None


def _title(records: Records) -> str:
    run = records.run
    if not run and not records.comparison:
        return f"Adapter: {records.folder.resolve().name}"
    if not run:
        return f"Comparison: {records.comparison.get('recipe') or records.folder.name}"
    model = (run.get("settings") or {}).get("model")
    return " · ".join(str(part) for part in (str(run.get("method") or "run").upper(), run.get("recipe"), model) if part)
