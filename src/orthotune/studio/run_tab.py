"""The tab Run: the queue, and one run live."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from orthotune.errors import OrthotuneError
from orthotune.recipes.registry import RECIPES
from orthotune.studio import pages
from orthotune.studio.facts import read_facts, tail
from orthotune.studio.queue import Job, ask_run, stop_run
from orthotune.studio.workshop import Workshop, with_message

#: Seconds between two looks at the runs.
PACE = 2.0
#: Most runs that are listed.
MOST = 30
#: Two buttons are beside each other on a phone.
BESIDE: dict[str, Any] = {"min_width": 130}
#: What a run does when it is asked for something.
ASKED = {
    "sample-now": "texts or images of its samples, which are shown below.",
    "save-now": "a checkpoint.",
    "finish-now": "a measurement, and the end in order, with the adapter and the record. With result: best it keeps "
    "the parameters of the best measurement.",
}


class RunTab:
    """The tab and its functions.

    Args:
        workshop: of the page.
    """

    def __init__(self, workshop: Workshop) -> None:
        self.workshop = workshop
        jobs = gr.HTML(elem_id="jobs")
        chosen = gr.Dropdown([], label="Run", elem_id="run", info="Shown below; the buttons are for this run.")
        with gr.Row():
            stop = gr.Button("Stop and keep", elem_id="stop", **BESIDE)
            finish = gr.Button("Finish now", elem_id="finish", **BESIDE)
            resume = gr.Button("Resume", elem_id="resume", **BESIDE)
            remove = gr.Button("Take off the list", elem_id="remove", **BESIDE)
        with gr.Row():
            sample = gr.Button("Sample now", elem_id="sample-now", **BESIDE)
            save = gr.Button("Save now", elem_id="save-now", **BESIDE)
        news = gr.HTML(elem_id="run-news")
        live = gr.HTML(elem_id="live")
        with gr.Accordion("Log", open=False):
            log = gr.HTML(elem_id="log")
        seen = gr.State({})
        outputs = [jobs, chosen, live, log, seen]
        self.first = (self._look, [chosen, seen], outputs)
        gr.Timer(PACE).tick(*self.first, show_progress="hidden", trigger_mode="once")
        chosen.input(*self.first, show_progress="hidden")
        actions = (
            (stop, self._stop), (resume, self._resume), (remove, self._remove), (sample, self._ask("sample-now")),
            (save, self._ask("save-now")), (finish, self._ask("finish-now")),
        )  # fmt: skip
        for button, action in actions:
            button.click(action, chosen, news, show_progress="hidden").then(*self.first, show_progress="hidden")

    def _look(self, chosen: str | None, seen: dict[str, str]) -> tuple[Any, ...]:
        """What changed since the page was last looked at; the rest of the page is not sent again."""
        self.workshop.queue.keep_going()
        entries = self.workshop.entries()[:MOST]
        paths = [str(run) for run, _, _ in entries]
        known = chosen if chosen in paths else next(iter(paths), None)
        rows = [self._row(run, state, str(run) == known) for run, _, state in entries]
        choices = [(self.workshop.name(run), str(run)) for run, _, _ in entries]
        shown = {"jobs": pages.jobs(rows), "choices": repr((choices, known)), "live": "", "log": ""}
        for run, job, state in entries:
            if str(run) == known:
                shown["live"] = pages.live(read_facts(run), self.workshop.name(run), state)
                shown["log"] = self._log(job)
        new = {key for key, value in shown.items() if seen.get(key) != value}
        return (
            shown["jobs"] if "jobs" in new else gr.skip(),
            gr.Dropdown(choices, value=known) if "choices" in new else gr.skip(),
            shown["live"] if "live" in new else gr.skip(),
            shown["log"] if "log" in new else gr.skip(),
            shown if new else gr.skip(),
        )

    def _log(self, job: Job | None) -> str:
        if job is None:
            return pages.message("Started from the command line: its log is in its terminal.")
        return pages.lines(tail(self.workshop.queue.log_file(job)).rstrip().split("\n"))

    def _row(self, run: Path, state: str, chosen: bool) -> dict[str, Any]:
        facts = read_facts(run)
        row = facts.row("")
        return {
            "name": self.workshop.name(run), "state": state, "step": facts.step, "steps": facts.steps,
            "left": facts.seconds_left if state == "running" else None, "gain": row["gain"],
            "forgetting": row["forgetting"], "chosen": chosen,
        }  # fmt: skip

    def _entry(self, chosen: str | None) -> tuple[Path, Job | None]:
        for run, job, _ in self.workshop.entries():
            if str(run) == chosen:
                return run, job
        raise OrthotuneError("no run is chosen", do="Choose one of the list")

    def _stop(self, chosen: str | None) -> str:
        return with_message(self._stopped)(chosen)

    def _stopped(self, chosen: str | None) -> str:
        run, job = self._entry(chosen)
        if job is None:
            stop_run(run)
        else:
            waiting = self.workshop.queue.state(job) == "waiting"
            self.workshop.queue.stop(job)
            if waiting:
                return pages.message(f"{self.workshop.name(run)} is no longer in the queue.", "right")
        return pages.message(
            f"{self.workshop.name(run)} saves a checkpoint after its step and ends. Resume goes on from there; the tab "
            "After can use the checkpoint of a language model.", "right",
        )  # fmt: skip

    def _ask(self, name: str) -> Callable[[str | None], str]:
        def asked(chosen: str | None) -> str:
            run, job = self._entry(chosen)
            recipe = RECIPES.get(job.recipe if job else read_facts(run).recipe)
            if name == "sample-now" and recipe is not None and recipe.head:
                raise OrthotuneError(
                    f"samples of {self.workshop.name(run)}", got=f"a run of the recipe {recipe.name}",
                    needed="a model that writes texts or makes images",
                )  # fmt: skip
            ask_run(self.workshop.folders.inside(run), name)
            return pages.message(f"{self.workshop.name(run)}, after its present step: {ASKED[name]}", "right")

        return with_message(asked)

    def _resume(self, chosen: str | None) -> str:
        return with_message(self._resumed)(chosen)

    def _resumed(self, chosen: str | None) -> str:
        run, job = self._entry(chosen)
        recipe = job.recipe if job else read_facts(run).recipe
        self.workshop.queue.resume(run, recipe or "sft")
        self.workshop.queue.keep_going()
        return pages.message(
            f"{self.workshop.name(run)} is in the queue, and goes on from its newest checkpoint.", "right"
        )

    def _remove(self, chosen: str | None) -> str:
        return with_message(self._removed)(chosen)

    def _removed(self, chosen: str | None) -> str:
        run, job = self._entry(chosen)
        if job is None:
            raise OrthotuneError(f"{self.workshop.name(run)}", got="a run of the command line", do="Remove its folder")
        self.workshop.queue.remove(job)
        return pages.message(f"{self.workshop.name(run)} is off the list of jobs; its folder stays.", "right")
