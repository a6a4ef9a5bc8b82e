"""What was gained and forgotten on the page: over the steps, against each other, and after rewinding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orthotune.report import write_report
from orthotune.report.gain import gain_and_forgetting, rewound

RUN = {"recipe": "sft", "method": "oft", "settings": {"model": "m"}, "versions": {}, "steps": 200, "gain": 0.4}
LOSSES: list[dict[str, Any]] = [
    {"step": 0, "new_nats": 3.5, "old_nats": 2.0}, {"step": 50, "train_loss": 3.2},
    {"step": 100, "new_nats": 3.25, "old_nats": 1.9375}, {"step": 200, "new_nats": 3.0, "old_nats": 2.125},
]  # fmt: skip


def test_older_lines_without_the_keys_and_newer_ones_give_the_same_plots() -> None:
    newer = [
        line | {"gain": 3.5 - line["new_nats"], "forgetting": line["old_nats"] - 2.0} if "new_nats" in line else line
        for line in LOSSES
    ]
    found = gain_and_forgetting(LOSSES)
    assert found == gain_and_forgetting(newer)
    assert [curve["name"][:4] for curve in found["chart"]["curves"]] == ["gain", "forg"]
    labels = [label for _, _, label in found["path"]["dots"]]
    assert labels[1] == "step 100: gain +0.250, forgetting −0.062" and len(labels) == 3
    (x0, y0, _), (x1, y1, _), (x2, y2, _) = found["path"]["dots"]
    assert y0 > y1 > y2 and x1 < x0 < x2  # a gain leads up, and what got better to the left
    assert all(0 <= x <= 320 and 0 <= y <= 240 for x, y, *_ in found["path"]["dots"])


@pytest.mark.parametrize(
    ("lines", "chart", "path"),
    [
        ([], False, False),
        (LOSSES[:1], False, False),
        ([{"step": 1, "train_loss": 2.0}, {"step": 2, "train_loss": None}], False, False),
        ([{key: value for key, value in line.items() if key != "old_nats"} for line in LOSSES], True, False),
        (LOSSES[:3], True, True),
        ([{"step": 0, "new_nats": 3.0, "old_nats": 2.0}] * 2, True, True),  # nothing changed
    ],
)
def test_what_was_not_measured_is_not_plotted(lines: list[dict[str, Any]], chart: bool, path: bool) -> None:
    found = gain_and_forgetting(lines)
    assert (found["chart"] is not None, found["path"] is not None) == (chart, path)


def test_the_page_has_both_plots_and_the_strengths(tmp_path: Path) -> None:
    figures = {"by": "kind", "strengths": {"attention": 0.55, "mlp<": 0.85}, "gain": 0.35, "forgetting": 0.0,
               "as_trained": {"gain": 0.4, "forgetting": 0.125}}  # fmt: skip
    (tmp_path / "run.json").write_text(json.dumps(RUN | {"rewound": figures}))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LOSSES))
    page = write_report(tmp_path).read_text()
    assert 'aria-label="gain and forgetting by step"' in page and 'aria-label="gain against forgetting"' in page
    assert page.count("<svg") == page.count("</svg>") == 3
    for words in ("attention 0.550", "mlp&lt; 0.850", "+0.350", "+0.125", "chosen strengths"):
        assert words in page
    (tmp_path / "run.json").write_text(json.dumps(RUN))
    (tmp_path / "metrics.jsonl").write_text("")
    page = write_report(tmp_path).read_text()
    assert "step by step" not in page and "Rewound" not in page


def test_many_strengths_are_counted() -> None:
    found = rewound({"rewound": {"strengths": {f"layer {n}": 0.5 for n in range(20)}}})
    assert found is not None and found["strengths"].endswith(" and 12 more.")
    assert rewound({}) is None and rewound({"rewound": None}) is None
