"""The tab Compare: several runs in one table and one frontier, and a run repeated with one setting changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from orthotune.errors import OrthotuneError
from orthotune.recipes.registry import RECIPES
from orthotune.recipes.setting_fields import all_fields
from orthotune.studio import pages
from orthotune.studio.facts import read_facts
from orthotune.studio.recipe_text import typed, values_of, with_value
from orthotune.studio.start_tab import StartTab
from orthotune.studio.workshop import Workshop

#: Settings of a run that a repeated run has of its own.
OWN = ("output", "resume", "recipe")


class CompareTab:
    """The tab and its functions.

    Args:
        workshop: of the page.
        start: the tab that a repeated run is put into.
        tabs: of the page.
    """

    def __init__(self, workshop: Workshop, start: StartTab, tabs: Any) -> None:
        self.workshop, self.start = workshop, start
        runs = gr.Dropdown([], multiselect=True, label="Runs", elem_id="compared-runs")
        table = gr.HTML(pages.compared([]), elem_id="compared")
        runs.change(self._compare, runs, table, show_progress="hidden")
        with gr.Accordion("Repeat a run with one setting changed", open=True):
            with gr.Row():
                run = gr.Dropdown([], label="Run", elem_id="repeated")
                key = gr.Dropdown([], label="Setting", elem_id="changed-key")
                value = gr.Textbox(
                    label="New value", elem_id="changed-value", info="As after KEY= on the command line."
                )
            go = gr.Button("Put into the tab Start", elem_id="repeat")
            news = gr.HTML(elem_id="repeat-news")
        run.change(self._keys, run, key, show_progress="hidden")
        outputs = [start.recipe, start.preset, start.text, start.version, tabs, news]
        go.click(self._repeat, [run, key, value, start.version], outputs)
        self.first = (self._choices, [runs, run], [runs, run])

    def _choices(self, chosen: list[str] | None, one: str | None) -> tuple[Any, Any]:
        entries = self.workshop.entries()
        found = [
            (self.workshop.name(run), str(run)) for run, _, state in entries if state not in ("waiting", "starting")
        ]
        paths = [path for _, path in found]
        kept = [path for path in chosen or paths[:6] if path in paths]
        return gr.Dropdown(found, value=kept), gr.Dropdown(
            found, value=one if one in paths else next(iter(paths), None)
        )

    def _compare(self, chosen: list[str] | None) -> str:
        paths = [self.workshop.folders.inside(one) for one in chosen or []]
        return pages.compared([read_facts(path).row(self.workshop.name(path)) for path in paths])

    def _keys(self, chosen: str | None) -> Any:
        recipe = self.workshop.facts(chosen).recipe if chosen else ""
        if recipe not in RECIPES:
            return gr.Dropdown([])
        names = [field.name for field in all_fields(f"orthotune.recipes.{RECIPES[recipe].settings}")]
        return gr.Dropdown([name for name in names if name not in OWN], value="learning_rate")

    def _repeat(self, chosen: str | None, key: str | None, value: str, version: int) -> tuple[Any, ...]:
        try:
            if not chosen or not key:
                raise OrthotuneError("no run or setting is chosen", needed="a run and one of its settings")
            recipe, text = self._text(self.workshop.folders.inside(chosen))
            text = with_value(text, key, typed(value))
            news = pages.message(f"{key} is changed. Its output is a new folder.", "right")
            return (*self.start.fill(recipe, text, version), gr.Tabs(selected="start"), news)
        except OrthotuneError as fault:
            return (*[gr.skip()] * 5, pages.message(str(fault), "wrong"))

    def _text(self, run: Path) -> tuple[str, str]:
        """The recipe and the recipe file of a run: the one that it was started with, or all its settings."""
        facts = read_facts(run)
        job = next((job for job in self.workshop.queue.jobs() if Path(job.output) == run), None)
        text = self.workshop.queue.text(job) if job else ""
        if not set(values_of(text)) - set(OWN):
            text = ""
            for name, value in facts.settings.items():
                text = with_value(text, name, value)
        for name in OWN:
            text = with_value(text, name, None)
        recipe = job.recipe if job else facts.recipe
        if recipe not in RECIPES:
            raise OrthotuneError(f"{self.workshop.name(run)}", got=f"a run of the recipe {recipe or 'unknown'}")
        return recipe, text
