"""One self-contained HTML page of a comparison on the image world: its tables, its images, every run."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orthotune.experiments.frontier import NAMES
from orthotune.files.atomic import write_text

NAME = "report.html"
#: Columns of the weights, behind the scores.
WEIGHTS = {"orthogonality_error": "‖RRᵀ−I‖", "energy_change": "energy change", "angle_change": "angle change"}

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; margin: 0 auto; padding: 1.5rem;
  max-width: 72rem }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin-top: 2rem }
.soft { color: #666 } .wide { overflow-x: auto } img { max-width: 100%; height: auto }
table { border-collapse: collapse; font-size: .88rem; white-space: nowrap }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #ddd; text-align: right; font-variant-numeric: tabular-nums }
th:first-child, td:first-child { text-align: left } tr.chosen td { font-weight: 600 }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #161616 } th, td { border-color: #333 }
  img { background: #fff } .soft { color: #999 } }
</style></head><body>
<h1>{{ title }}</h1>
<p class="soft">Each method's learning rate was chosen on the validation split; its runs were then scored on the test
split, once. Means over the seeds, ± their standard deviation.</p>
<h2>Test split, the chosen rates</h2>
<div class="wide"><table><thead><tr>{% for name in head %}<th>{{ name }}</th>{% endfor %}</tr></thead><tbody>
{% for line in lines %}<tr>{% for cell in line %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>
{% for name, image in images %}<p><img src="{{ image }}" alt="{{ name }}"></p>
{% endfor %}
<h2>Every run, validation split</h2>
<p class="soft">Runs at the chosen rates are bold.</p>
<div class="wide"><table><thead><tr>{% for name in run_head %}<th>{{ name }}</th>{% endfor %}</tr></thead><tbody>
{% for chosen, line in run_lines %}<tr{% if chosen %} class="chosen"{% endif %}>
{% for cell in line %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>
<h2>Settings</h2>
<div class="wide"><table><tbody>
{% for key, value in settings.items() %}<tr><td>{{ key }}</td><td>{{ value }}</td></tr>
{% endfor %}</tbody></table></div>
</body></html>
"""


def write_page(
    heading: str,
    titles: Mapping[str, str],
    settings: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Mapping[str, tuple[float, float]]],
    folder: Path,
) -> Path:
    """Write ``report.html`` into ``folder`` with the PNG files that lie there, and return its path.

    Args:
        heading: of the job.
        titles: of the scores.
        settings: of the comparison.
        rows: of every run.
        summary: mean and standard deviation of the chosen runs of each method, by column.
        folder: of the comparison.
    """
    import jinja2

    lines = [[NAMES.get(method, method), *_means(rows, method, found, titles)] for method, found in summary.items()]
    run_lines = [
        (
            row["chosen"],
            [
                row["run"], f"{row['trainable_parameters']:,}",
                *(_number(row.get(f"validation_{name}")) for name in titles),
                *(_small(row.get(name)) for name in WEIGHTS), _number(row.get("train_seconds"), 0),
            ],
        )
        for row in rows
    ]  # fmt: skip
    images = [
        (path.stem, "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii"))
        for path in sorted(folder.glob("*.png"))
    ]
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(_PAGE)
    text = page.render(
        title=f"Comparison on the image world: {heading}",
        head=["method", "learning rate", "parameters", *titles.values(), *WEIGHTS.values()],
        lines=lines,
        images=images,
        run_head=["run", "parameters", *titles.values(), *WEIGHTS.values(), "seconds"],
        run_lines=run_lines,
        settings=settings,
    )
    write_text(folder / NAME, text)
    return folder / NAME


def _means(
    rows: Sequence[Mapping[str, Any]], method: str, found: Mapping[str, tuple[float, float]], titles: Mapping[str, str]
) -> list[str]:
    chosen = next(row for row in rows if row["method"] == method and row["chosen"])
    rate = chosen.get("learning_rate")
    scores = [_spread(found.get(f"test_{name}")) for name in titles]
    weights = [_small(found[name][0]) if name in found else "–" for name in WEIGHTS]
    return [f"{rate:g}" if rate else "–", f"{chosen['trainable_parameters']:,}", *scores, *weights]


def _spread(value: tuple[float, float] | None) -> str:
    if value is None:
        return "–"
    return f"{value[0]:.3f} ± {value[1]:.3f}" if value[1] else f"{value[0]:.3f}"


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _small(value: float | None) -> str:
    return "–" if value is None else f"{value:.1e}"
