"""Fragments of HTML for the page; every value in them is escaped by the templates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

from orthotune.report.comparison import comparison
from orthotune.report.page import environment, values
from orthotune.report.records import Records
from orthotune.studio.facts import Facts, axes_of

#: What the templates of the report plot, with nothing in it.
_NOTHING: dict[str, Any] = {
    "gained": {"chart": None, "path": None}, "charts": [], "images": {}, "run": {}, "comparison": {"frontier": None},
}  # fmt: skip


@cache
def _templates() -> Any:
    return environment("orthotune.studio")


def _page(template: str, /, **shown: Any) -> str:
    return sendable(_templates().get_template(f"parts/{template}.html").render(**shown))


def sendable(text: str) -> str:
    r"""A text as UTF-8 can hold it: a half of a pair of UTF-16, and bytes of a name of another encoding, are escaped.

    Args:
        text: of a file, or the name of one.

    Example:
        >>> sendable("caf\udce9")
        'caf\\udce9'
    """
    return text.encode(errors="backslashreplace").decode()


def style() -> str:
    """The style of the fragments: that of the report, within elements of the class ``report``."""
    template = Path(__file__).parent / "parts" / "studio.css"
    own = Path(__file__).parents[1] / "report" / "parts" / "style.css"
    text = template.read_text(encoding="utf-8").replace("{{ report_style }}", own.read_text(encoding="utf-8"))
    return f"<style>{text}</style>"


def message(text: str, kind: Literal["right", "wrong", "plain"] = "plain") -> str:
    """One or several lines for the user.

    Args:
        text: the lines.
        kind: of the news.

    Example:
        >>> "<p>a &lt;b&gt;</p>" in message("a <b>")
        True
    """
    return _page("message", text=text, kind=kind)


def checked(settings: Mapping[str, Any]) -> str:
    """Settings that can be used."""
    return _page("settings", settings=settings)


def lines(found: Sequence[str], title: str = "") -> str:
    """Lines as a command prints them.

    Args:
        found: the lines.
        title: above them.
    """
    return _page("lines", lines=found, title=title)


def images(found: Mapping[str, Any]) -> str:
    """Thumbnails with captions.

    Args:
        found: what ``computing.images_of`` returned.
    """
    return _page("images", rows=found["rows"], count=found["count"], notes=found["notes"])


def rows(found: Mapping[str, Any]) -> str:
    """Rows of a table.

    Args:
        found: what ``computing.rows_of`` returned.
    """
    return _page("rows", rows=found["rows"], count=found["count"])


def jobs(entries: Iterable[Mapping[str, Any]]) -> str:
    """The runs with their states.

    Args:
        entries: ``name``, ``state``, ``step``, ``steps``, ``left``, ``gain``, ``forgetting`` and ``chosen`` of each.
    """
    return _page("jobs", entries=list(entries))


def live(facts: Facts, name: str, state: str) -> str:
    """A run while it is trained: the same plots as in its report.

    Args:
        facts: of the run.
        name: of the run.
        state: what became of it.
    """
    shown = values(facts.records)
    shown |= {"settings": facts.settings, "name": name, "state": state, "recipe": facts.recipe, "fault": facts.fault}
    shown |= {"step": facts.step, "steps": facts.steps, "left": facts.seconds_left, "warnings": facts.warnings}
    shown |= {"advice": facts.advice}
    return _page("live", **shown)


def sides(texts: Sequence[tuple[str, str]] = (), shown_images: Sequence[tuple[str, Sequence[str]]] = ()) -> str:
    """Answers or images beside each other.

    Args:
        texts: heading and text of each side.
        shown_images: heading and data URIs of each side.
    """
    return _page("sides", texts=texts, images=shown_images)


def at(strength: float, parts: Mapping[str, float]) -> str:
    """Strengths in words.

    Args:
        strength: of the adapter.
        parts: strengths of parts, by which it is multiplied.

    Example:
        >>> at(0.5, {}), at(1, {"q_proj": 0, "k_proj": 1})
        ('strength 0.5', 'strength 1, of which q_proj 0')
    """
    own = ", ".join(f"{part} {value:g}" for part, value in parts.items() if value != 1)
    return f"strength {strength:g}" + (f", of which {own}" if own else "")


def dialogue(exchanges: Sequence[Mapping[str, Any]], fault: str = "") -> str:
    """A dialogue, each message with its answers.

    Args:
        exchanges: ``message``, ``base``, ``text``, ``heading`` and ``notes`` of each.
        fault: why there is no answer to the next message.
    """
    return _page("dialogue", exchanges=exchanges, fault=fault)


def layers(found: Mapping[str, Any]) -> str:
    """What an adapter does to each layer: warnings with their remedy, heat maps, histograms, a table.

    Args:
        found: what ``computing.layers_of`` returned.
    """
    lora = str(found.get("format", "")).endswith("-lora")
    shown = values(Records(Path(), adapter={} if lora else found))
    return _page("adapter", **shown, rows=found.get("layers") or [] if lora else [])


def tools(found: Sequence[Mapping[str, Any]]) -> str:
    """The tools that can load an adapter.

    Args:
        found: what ``computing.tools`` returned.
    """
    return _page("tools", rows=found)


def compared(found: Sequence[Mapping[str, Any]]) -> str:
    """Runs in one table and one frontier.

    Args:
        found: rows of the runs.
    """
    record: dict[str, Any] = {"runs": found}
    if not any(row.get("gain") is not None for row in found):
        record["axes"] = axes_of(found)
    shown = comparison(record)
    if shown["table"]:  # a row is a run, by its name
        shown["table"]["head"][0] = ("run", False)
    return _page("compared", **_NOTHING | {"comparison": shown})


def link(run: str, name: str, there: bool) -> str:
    """A link to the report of a run.

    Args:
        run: its path.
        name: of the run.
        there: whether it has a report.
    """
    return _page("link", run=run, name=name, there=there)
