"""The tables of docs/reference/formats.md, from the fixtures and the registry of formats.

``PYTHONPATH=src:. python -m tests.formats.format_table`` writes them into the page; a test says when that is due.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from orthotune.formats.kinds import kind_of
from orthotune.formats.registry import FORMATS, targets
from tests.support.producers import comparisons, produced

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "formats.md"
BEGIN, END = "<!-- tables: begin -->\n", "<!-- tables: end -->\n"
#: Formats that no fixture has, read by their formulas; tests compare them with a format of the same meaning.
BY_FORMULA = {
    "kohya-oft-v2": ("sd-scripts `networks.oft_v2`", {"in neumann"}),
    "kohya-boft": ("sd-scripts `networks.boft`", {"in exact with scaled rows", "in butterfly"}),
    "orthotune": ("orthotune", {"in exact", "out exact", "in neumann"}),
}
SIGNS = {"lossless": "●", "approximate": "○", "impossible": ""}
TRANSFORMS = {"in butterfly", "out butterfly", "legacy convolution", "truncated blocks", "dense blocks", "split rows"}


@cache
def tables() -> str:
    """Both tables as the page has them."""
    kinds: dict[str, set[str]] = {name: set(found) for name, (_, found) in BY_FORMULA.items()}
    writers: dict[str, set[str]] = {name: {tool} for name, (tool, _) in BY_FORMULA.items()}
    counts = dict.fromkeys(kinds, 0)
    for case in produced():
        state = case.read()
        kinds.setdefault(state.format, set()).update(map(kind_of, [*state.layers.values(), *state.transforms.values()]))
        if state.format == "kohya-oft-flux":
            kinds[state.format].add("out exact")  # parts with blocks of one size
        if "ragged" in case.folder.name:
            kinds[state.format].add("truncated blocks")
        writers.setdefault(state.format, set()).add(case.producer)
        counts[state.format] = counts.get(state.format, 0) + len(list(comparisons(case)))
    lines = ["| format | files of | compared | runs as | `--to`, without loss |", "|---|---|---|---|---|"]
    for name in sorted(kinds):
        ways = {"weight transform" if kind in TRANSFORMS else "rotation" for kind in kinds[name]}
        to = sorted({t for t in targets() for kind in kinds[name] if targets()[t].can_hold(kind)[0] == "lossless"})
        compared = str(counts[name]) if counts[name] else "by formula"
        row = name, ", ".join(sorted(writers[name])), compared, " or ".join(sorted(ways)), ", ".join(to) or "diff only"
        lines.append("| " + " | ".join(row) + " |")
    everything = sorted({kind for found in kinds.values() for kind in found} | {"embedding"})
    lines += ["", "| kind of layer | " + " | ".join(targets()) + " |", "|---" * (len(targets()) + 1) + "|"]
    for kind in everything:
        signs = [SIGNS[target.can_hold(kind)[0]] for target in targets().values()]
        lines.append("| " + " | ".join([kind, *signs]) + " |")
    return "\n".join(lines) + "\n"


def known_formats() -> set[str]:
    """The id of every format that is read."""
    return {format.name for format in FORMATS if format.producer}


def written(page: str) -> str:
    """The page with its tables made anew."""
    head, rest = page.split(BEGIN)
    return head + BEGIN + tables() + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
