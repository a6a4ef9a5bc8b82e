"""The tab Start: a job, its settings as a form and as a recipe file, its data, what it will need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from orthotune.errors import OrthotuneError
from orthotune.files.atomic import write_text
from orthotune.recipes.registry import RECIPES
from orthotune.report.wording import duration
from orthotune.studio import pages
from orthotune.studio.facts import earlier_pace
from orthotune.studio.forms import FIRST, Control, controls, new_text, preset_of, presets
from orthotune.studio.recipe_text import edited, values_of, written
from orthotune.studio.workshop import Workshop, with_message

#: Settings that name the data of a recipe, in the order in which they are looked for.
DATA = ("data", "instance_images", "conditions")
#: Settings with a caption for images that have none.
CAPTIONS = ("caption", "instance_prompt")
#: Events that change the recipe file happen one after another.
IN_ORDER: dict[str, Any] = {"show_progress": "hidden", "concurrency_id": "recipe", "concurrency_limit": 1}


class StartTab:
    """The components of the tab that other tabs write to, and its functions.

    Args:
        workshop: of the page.
    """

    def __init__(self, workshop: Workshop) -> None:
        self.workshop = workshop
        choices = [
            (f"{name}: {recipe.summary.partition('. ')[0].rstrip('.')}", name) for name, recipe in RECIPES.items()
        ]
        self.version, self.before, self.history = gr.State(0), gr.State(""), gr.State(())
        with gr.Row():
            self.recipe = gr.Dropdown(choices, value="sft", label="Job", scale=3, elem_id="recipe")
            self.preset = gr.Dropdown(_preset_choices("sft"), value="", label="Preset", scale=2, elem_id="preset",
                                      info="Tested settings for a family of models.")  # fmt: skip
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=340):
                form = gr.Column()
            with gr.Column(scale=2, min_width=320, elem_id="beside"):
                self.text = gr.Code(new_text("sft"), language="yaml", label="Recipe file of `orthotune train`",
                                    elem_id="recipe-text", lines=8, interactive=True)  # fmt: skip
                status = gr.HTML(elem_id="check")
                with gr.Row():
                    needs = gr.Button("What will it need?", elem_id="needs")
                    start = gr.Button("Put into the queue", variant="primary", elem_id="start")
                self.news = gr.HTML(elem_id="start-news")
                needed = gr.HTML(elem_id="needed")
        with gr.Accordion("Data of this run", open=False):
            look = gr.Button("Show the data", elem_id="look")
            data = gr.HTML(elem_id="data")
            with gr.Row():
                image = gr.Dropdown([], label="Image", elem_id="caption-of", scale=1)
                caption = gr.Textbox(label="Its caption", elem_id="caption", scale=2, lines=2)
            keep = gr.Button("Write this caption", elem_id="keep-caption")
            kept = gr.HTML(elem_id="caption-news")

        self._events(form)
        self.text.change(
            self._check, [self.recipe, self.text], status, trigger_mode="always_last", show_progress="hidden"
        )
        # A button first waits in line behind the fields, and then reads the text that they have made.
        needs.click(_nothing, **IN_ORDER).then(self._needs, [self.recipe, self.text], needed)
        start.click(_nothing, **IN_ORDER).then(self._start, [self.recipe, self.text], self.news)
        look.click(self._look, [self.recipe, self.text], [data, image])
        image.change(self._caption, [self.text, image], caption, show_progress="hidden")
        keep.click(self._keep, [self.text, image, caption], kept).then(
            self._look, [self.recipe, self.text], [data, image], show_progress="hidden"
        )
        self.first = (self._check, [self.recipe, self.text], status)

    def _events(self, form: Any) -> None:
        """The recipe, the preset, the text and the fields of the form follow each other."""
        again = (_next, self.version, self.version)
        self.recipe.input(self._new, self.recipe, [self.text, self.preset], **IN_ORDER).then(*again)
        edit = _with("preset")
        self.preset.input(edit, [self.text, self.history, self.preset], [self.text, self.history], **IN_ORDER).then(
            *again
        )
        self.text.focus(lambda text: text, self.text, self.before, show_progress="hidden")
        self.text.input(lambda text: (text,), self.text, self.history, **IN_ORDER, trigger_mode="always_last")
        self.text.blur(
            self._read, [self.recipe, self.text, self.before, self.version], [self.preset, self.version],
            show_progress="hidden",
        )  # fmt: skip

        with form:

            @gr.render(inputs=[self.recipe, self.text], triggers=[self.version.change], show_progress="hidden")
            def _(recipe: str, text: str) -> None:
                self._form(recipe, text)

    def _form(self, recipe: str, text: str) -> None:
        try:
            values = values_of(text)
        except OrthotuneError:
            values = {}  # the check names the line
        found = controls(recipe, preset_of(recipe, values))
        for theme, members in found.items():
            given = any(one.key in values for one in members)
            with gr.Accordion(theme, open=theme == FIRST or given):
                for control in members:
                    self._control(control, values.get(control.key))

    def _control(self, control: Control, value: Any) -> None:
        same: dict[str, Any] = {"label": control.key, "info": control.about, "elem_id": f"set-{control.key}"}
        edit, outputs = _with(control.key), [self.text, self.history]
        if control.kind == "choice":
            known = {choice for _, choice in control.choices}
            extra = [] if written(value) in known else [(written(value), written(value))]
            field: Any = gr.Dropdown([*control.choices, *extra], value=written(value), **same)
            field.input(edit, [self.text, self.history, field], outputs, **IN_ORDER)
        else:
            field = gr.Textbox(value=written(value), placeholder=control.hint, **same)
            for event in (field.blur, field.submit):
                event(edit, [self.text, self.history, field], outputs, **IN_ORDER)

    def fill(self, recipe: str, text: str, version: int) -> tuple[Any, ...]:
        """Values of recipe, preset, text and version, for a run that begins with another one's settings.

        Args:
            recipe: name in the registry.
            text: of the recipe file.
            version: of the form before.
        """
        preset = str(values_of(text).get("preset") or "")
        return recipe, gr.Dropdown(_preset_choices(recipe), value=preset), text, version + 1

    def _new(self, recipe: str) -> tuple[Any, ...]:
        return new_text(recipe), gr.Dropdown(_preset_choices(recipe), value="")

    def _read(self, recipe: str, text: str, before: str, version: int) -> tuple[Any, Any]:
        """The preset and a new version of the form, if the recipe file was edited; a form that fits stays as it is."""
        if text == before:
            return gr.skip(), gr.skip()
        try:
            chosen = str(values_of(text).get("preset") or "")
        except OrthotuneError:
            return gr.skip(), gr.skip()
        return chosen if chosen in presets(recipe) else "", version + 1

    def _check(self, recipe: str, text: str) -> str:
        try:
            self.workshop.folders.check(values_of(text))
            return pages.checked(self.workshop.checks.call("check", recipe=recipe, text=text))
        except (OrthotuneError, OSError) as fault:
            return pages.message(str(fault), "wrong")

    def _needs(self, recipe: str, text: str) -> str:
        return with_message(self._needed)(recipe, text)

    def _needed(self, recipe: str, text: str) -> str:
        self.workshop.folders.check(values_of(text))
        settings = self.workshop.checks.call("check", recipe=recipe, text=text)
        lines = self.workshop.checks.call("plan", recipe=recipe, text=text)
        runs = self.workshop.folders.runs()
        if (found := earlier_pace(runs, settings, recipe)) is None:
            time = "time        unknown: no finished run of this model and batch is in the folders"
        else:
            run, pace = found
            steps = settings.get("steps")
            long = f"about {duration(steps * pace)}" if steps else f"{pace:.2f} s a step"
            time = f"time        {long}, as {self.workshop.name(run)} needed {pace:.2f} s a step"
        memory = [] if RECIPES[recipe].plans else ["memory      unknown: this recipe has no estimate"]
        return pages.lines([time, *memory, *lines])

    def _start(self, recipe: str, text: str) -> str:
        return with_message(self._started)(recipe, text)

    def _started(self, recipe: str, text: str) -> str:
        self.workshop.folders.check(values_of(text))
        self.workshop.checks.call("check", recipe=recipe, text=text)
        job = self.workshop.queue.add(recipe, text)
        self.workshop.queue.keep_going()
        return pages.message(f"{self.workshop.name(Path(job.output))} is in the queue. The tab Run shows it.", "right")

    def _look(self, recipe: str, text: str) -> tuple[str, Any]:
        try:
            source, default = self._source(text)
            if source is None:
                return pages.message(self._no_file(text)), gr.Dropdown([])
            if recipe not in ("subject", "control", "t2i", "vision"):
                return pages.rows(
                    self.workshop.checks.call("rows_of", source=str(source), roots=self._roots())
                ), gr.Dropdown([])
            found = self.workshop.checks.call("images_of", source=str(source), default=default, roots=self._roots())
            names = [row["name"] for row in found["rows"] if row["file"] and row["name"] == pages.sendable(row["name"])]
            return pages.images(found), gr.Dropdown(names, value=names[0] if names else None)
        except (OrthotuneError, OSError) as fault:
            return pages.message(str(fault), "wrong"), gr.Dropdown([])

    def _source(self, text: str) -> tuple[Path | None, str | None]:
        """Where the data of a recipe lies, and its caption for images without one."""
        values = values_of(text)
        self.workshop.folders.check(values)
        default = next((str(values[key]) for key in CAPTIONS if key in values), None)
        for key in DATA:
            if isinstance(values.get(key), str) and (self.workshop.folders.workspace / values[key]).exists():
                return self.workshop.folders.inside(values[key]), default
        return None, default

    def _no_file(self, text: str) -> str:
        """Why there is nothing to show of the data of a recipe."""
        values = values_of(text)
        given = next((values[key] for key in DATA if values.get(key)), None)
        if given is None:
            return "The data of the built-in model; no file to show."
        if not isinstance(given, str):
            return "Several data sets: each is shown alone, where it is the data of a run."
        place = self.workshop.folders.workspace
        return f"Nothing is at {given} in {place}. A run takes it for data of the package, or for a name on the hub."

    def _roots(self) -> list[str]:
        return [str(root) for root in self.workshop.folders.roots]

    def _row(self, text: str, name: str) -> dict[str, Any]:
        source, default = self._source(text)
        if source is None:
            raise OrthotuneError("no data", needed="a folder of images in the recipe")
        found = self.workshop.checks.call("images_of", source=str(source), default=default, roots=self._roots())
        for row in found["rows"]:
            if row["name"] == name:
                return dict(row)
        raise OrthotuneError(f"image {name}", got="none of that name any more", do="Show the data again")

    def _caption(self, text: str, name: str | None) -> str:
        try:
            return str(self._row(text, name)["caption"]) if name else ""
        except (OrthotuneError, OSError):
            return ""

    def _keep(self, text: str, name: str | None, caption: str) -> str:
        return with_message(self._written)(text, name, caption)

    def _written(self, text: str, name: str | None, caption: str) -> str:
        if not name:
            raise OrthotuneError("no image", needed="one that is shown", do="Show the data first")
        file = self.workshop.folders.inside(self._row(text, name)["file"])
        source, _ = self._source(text)
        table = source / "metadata.jsonl" if source is not None and source.is_dir() else source
        if table is not None and table.is_file():  # a file beside the image would not be read
            raise OrthotuneError(f"the caption of {name}", got=f"a row of {table.name}", do="Edit that file")
        beside = self.workshop.folders.inside(file.with_suffix(".txt"))
        write_text(beside, caption.strip() + "\n")
        return pages.message(f"Written: {self.workshop.name(beside)}", "right")


def _with(key: str) -> Any:
    def changed(text: str, history: tuple[str, ...], field: str | None) -> Any:
        found = edited(text, tuple(history), key, field)
        return (gr.skip(), gr.skip()) if found is None else found

    return changed


def _nothing() -> None:
    """What a button does in its place behind the fields."""


def _next(version: int) -> int:
    return version + 1


def _preset_choices(recipe: str) -> list[tuple[str, str]]:
    return [("none, or that of the built-in model", ""), *((name, name) for name in presets(recipe))]
