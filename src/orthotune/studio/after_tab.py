"""The tab After: a finished run at any strength beside its base, combined, converted, exported, and its report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from orthotune.errors import OrthotuneError
from orthotune.files.names import is_file_name
from orthotune.report.page import NAME
from orthotune.studio import pages
from orthotune.studio.dialogue import Dialogue
from orthotune.studio.workshop import Workshop, with_message

#: Largest strength of the slider.
MOST = 1.5
#: Events that change the strengths of parts happen one after another.
IN_ORDER: dict[str, Any] = {"show_progress": "hidden", "concurrency_id": "parts", "concurrency_limit": 1}
#: What can have a strength of its own.
BY = [("all layers together", "one"), ("attention and MLP", "kind"), ("each projection", "projection"),
      ("each depth", "depth"), ("each layer", "layer")]  # fmt: skip
COMBINATIONS = ("geodesic", "product", "tangent")
#: What an export with the weights of the base writes.
EXPORTS = [("merged model", "dense"), ("change of every weight", "diff")]


class AfterTab:
    """The tab and its functions.

    Args:
        workshop: of the page.
    """

    def __init__(self, workshop: Workshop) -> None:
        self.workshop = workshop
        source = gr.Dropdown([], label="Run or adapter", elem_id="source")
        prompt = gr.Textbox(label="Prompt", lines=2, elem_id="prompt")
        with gr.Row():
            strength = gr.Slider(0, MOST, value=1, step=0.05, label="Strength", elem_id="strength",
                                 info="0 is the base, 1 as trained: a part of every rotation in between.")  # fmt: skip
            most = gr.Slider(8, 256, value=48, step=8, label="Tokens, of texts", elem_id="tokens")
            seed = gr.Number(value=0, precision=0, label="Seed", elem_id="seed", min_width=90)
        by = gr.Dropdown(BY, value="one", label="A strength of its own for", elem_id="by",
                         info="Each is multiplied by the strength above.")  # fmt: skip
        names, parts = gr.State({}), gr.State({})
        own, wrong = gr.Column(elem_id="parts"), gr.HTML(elem_id="parts-news")
        show = gr.Button("Show at this strength", variant="primary", elem_id="show")
        sides = gr.HTML(elem_id="sides")
        given = [source, prompt, strength, most, seed, by, parts]
        show.click(self._show, given, sides)
        strength.release(self._show, given, sides)
        for event in (by.input, source.change):
            event(self._parts, [source, by], [names, parts, wrong])
        with own:

            @gr.render(inputs=[names], triggers=[names.change], show_progress="hidden")
            def _(shown: dict[str, Any]) -> None:
                for number, name in enumerate(shown.get("names", ())):
                    slider = gr.Slider(
                        0, MOST, value=1, step=0.05, label=name, elem_id=f"part-{number}", interactive=True
                    )
                    # One after another: each reads the strengths that the one before has written.
                    slider.input(_with(name), [parts, slider], parts, trigger_mode="always_last", **IN_ORDER)
                    slider.release(_with(name), [parts, slider], parts, **IN_ORDER).then(self._show, given, sides)

        report = gr.HTML(elem_id="report-link")
        Dialogue(workshop, source, [strength, most, seed, by, parts])
        with gr.Accordion("What each layer does", open=False):
            look = gr.Button("Show the layers", elem_id="look-layers")
            layers = gr.HTML(elem_id="layers")
            look.click(self._layers, source, layers)
        self._write(source, strength, by, parts)
        source.change(self._prompt, source, [prompt, report], show_progress="hidden")
        self.first = (self._choices, [source], [source, self.other])

    def _write(self, source: Any, strength: Any, by: Any, parts: Any) -> None:
        """The parts of the tab that write files."""
        with gr.Accordion("Write a new adapter at the strengths above", open=False):
            called = gr.Textbox(label="Name of the new adapter", placeholder="weaker", elem_id="weaker-name")
            rewind = gr.Button("Write", elem_id="rewind")
            rewound = gr.HTML(elem_id="rewind-news")
            rewind_done = rewind.click(self._rewind, [source, strength, by, parts, called], rewound)
        with gr.Accordion("Tools that can load it, and conversion", open=False):
            list_tools = gr.Button("List the tools", elem_id="tools")
            found = gr.HTML(elem_id="tools-list")
            with gr.Row():
                target = gr.Dropdown([], label="Format", elem_id="target", allow_custom_value=False)
                out = gr.Textbox(label="Output", placeholder="converted/style.safetensors", elem_id="convert-out")
                approximate = gr.Checkbox(label="Allow an error", elem_id="approximate")
            go = gr.Button("Convert at the strengths above", elem_id="convert")
            news = gr.HTML(elem_id="convert-news")
            list_tools.click(self._tools, source, [found, target])
            go.click(self._convert, [source, target, out, approximate, strength, by, parts], news)
        with gr.Accordion("Export with the weights of the base", open=False):
            with gr.Row():
                kind = gr.Dropdown(EXPORTS, value="dense", label="As", elem_id="export-kind")
                place = gr.Textbox(label="Output", placeholder="merged/style", elem_id="export-out")
            write = gr.Button("Export at the strengths above", elem_id="export")
            done = gr.HTML(elem_id="export-news")
            write.click(self._export, [source, kind, place, strength, by, parts], done)
        with gr.Accordion("Combine with another adapter", open=False):
            with gr.Row():
                self.other = gr.Dropdown([], label="Second adapter", elem_id="other")
                how = gr.Dropdown(list(COMBINATIONS), value="geodesic", label="How", elem_id="how")
            with gr.Row():
                first = gr.Slider(0, MOST, value=0.5, step=0.05, label="Weight of the one above", elem_id="weight-1")
                second = gr.Slider(0, MOST, value=0.5, step=0.05, label="Weight of the second", elem_id="weight-2")
                name = gr.Textbox(label="Name of the new adapter", placeholder="both", elem_id="combined-name")
            join = gr.Button("Combine", elem_id="combine")
            made = gr.HTML(elem_id="combine-news")
            combined = join.click(self._combine, [source, self.other, first, second, how, name], made)
        for written in (combined, rewind_done):
            written.then(self._choices, [source], [source, self.other], show_progress="hidden")

    def _choices(self, chosen: str | None) -> tuple[Any, Any]:
        found = self.workshop.adapters()
        values = [value for _, value in found]
        known = chosen if chosen in values else next(iter(values), None)
        return gr.Dropdown(found, value=known), gr.Dropdown(found)

    def _prompt(self, chosen: str | None) -> tuple[Any, str]:
        """A prompt that the run itself was sampled with, and the link to its report."""
        if not chosen:
            return gr.skip(), ""
        facts = self.workshop.facts(chosen)
        asked = [pages.sendable(str(row["prompt"])) for row in facts.records.samples if row.get("prompt")]
        folder = facts.records.folder
        return (asked or [""])[0], pages.link(str(folder), self.workshop.name(folder), (folder / NAME).is_file())

    def _parts(self, chosen: str | None, by: str) -> tuple[dict[str, Any], dict[str, float], str]:
        """The parts that get a slider, at 1 each; with what they are of, so that those of another run are new ones."""
        if by == "one" or not chosen:
            return {}, {}, ""
        try:
            found = self.workshop.models.call("parts_of", source=self.workshop.path(chosen), by=by)
        except (OrthotuneError, OSError) as fault:
            return {}, {}, pages.message(str(fault), "wrong")
        return {"of": chosen, "by": by, "names": list(map(pages.sendable, found))}, {}, ""

    def _layers(self, chosen: str | None) -> str:
        return with_message(self._looked)(chosen)

    def _looked(self, chosen: str | None) -> str:
        return pages.layers(self.workshop.models.call("layers_of", adapter=self.workshop.path(chosen)))

    def _show(self, *given: Any) -> str:
        return with_message(self._shown)(*given)

    def _shown(
        self, chosen: str | None, prompt: str, strength: float, most: float, seed: float | None, by: str,
        parts: dict[str, float],
    ) -> str:  # fmt: skip
        path, first = self.workshop.path(chosen), int(seed or 0)
        heading = pages.at(strength, parts)
        if self.workshop.makes_images(path):
            found = self.workshop.models.call("images", run=path, prompt=prompt, strength=strength, by=by, parts=parts,
                                             seeds=[*range(first, first + 4)])  # fmt: skip
            return pages.sides(shown_images=[("base", found["base"]), (heading, found["tuned"])])
        found = self.workshop.models.call("answers", source=path, prompt=prompt, strength=strength, most=int(most),
                                         seed=first, temperature=0.0, by=by, parts=parts)  # fmt: skip
        return pages.sides([("adapter off", found["base"]), (heading, found["text"])])

    def _tools(self, chosen: str | None) -> tuple[str, Any]:
        try:
            found = self.workshop.models.call("tools", adapter=self.workshop.path(chosen))
        except (OrthotuneError, OSError) as fault:
            return pages.message(str(fault), "wrong"), gr.Dropdown([])
        ranks = {"lossless": 0, "approximate": 1}
        found = sorted(found, key=lambda row: ranks.get(row["verdict"], 2))
        able = [(f"{row['target']} ({row['tool']})", row["target"]) for row in found if row["verdict"] in ranks]
        return pages.tools(found), gr.Dropdown(able, value=able[0][1] if able else None)

    def _out(self, given: str) -> Path:
        if not given.strip():
            raise OrthotuneError("no output", needed="a path below the folders of the studio")
        return self.workshop.folders.inside(given.strip())

    def _convert(self, *given: Any) -> str:
        return with_message(self._converted)(*given)

    def _converted(
        self, chosen: str | None, target: str | None, out: str, approximate: bool, strength: float, by: str,
        parts: dict[str, float],
    ) -> str:  # fmt: skip
        if not target:
            raise OrthotuneError("no format is chosen", do="List the tools first")
        path, place = self.workshop.path(chosen), self._out(out)
        lines = self.workshop.models.call(
            "convert_to", adapter=path, target=target, out=str(place), approximate=approximate, strength=strength,
            by=by, parts=parts,
        )  # fmt: skip
        return pages.message("\n".join(lines), "right")

    def _rewind(self, chosen: str | None, strength: float, by: str, parts: dict[str, float], name: str) -> str:
        return with_message(self._rewound)(chosen, strength, by, parts, name)

    def _rewound(self, chosen: str | None, strength: float, by: str, parts: dict[str, float], name: str) -> str:
        path, out = self.workshop.path(chosen), self._new(name)
        lines = self.workshop.models.call("write_at", source=path, strength=strength, by=by, parts=parts, out=str(out))
        return pages.message("\n".join(lines), "right")

    def _new(self, name: str) -> Path:
        """The folder of a new adapter."""
        if not is_file_name(name.strip()):
            raise OrthotuneError(f"name {name!r}", needed="a file name, without a path")
        return self.workshop.folders.inside(self.workshop.folders.workspace / "adapters" / name.strip())

    def _export(self, *given: Any) -> str:
        return with_message(self._exported)(*given)

    def _exported(
        self, chosen: str | None, kind: str, out: str, strength: float, by: str, parts: dict[str, float]
    ) -> str:
        path, place = self.workshop.path(chosen), self._out(out)
        base = self.workshop.models.call("base_of", run=path)
        if not base:
            raise OrthotuneError(f"{self.workshop.name(Path(path))}", got="no record of its base model")
        lines = self.workshop.models.call(
            "export_to", adapter=path, base=base, kind=kind, out=str(place), strength=strength, by=by, parts=parts
        )
        return pages.message("\n".join(lines), "right")

    def _combine(self, one: str | None, other: str | None, first: float, second: float, how: str, name: str) -> str:
        return with_message(self._combined)(one, other, first, second, how, name)

    def _combined(self, one: str | None, other: str | None, first: float, second: float, how: str, name: str) -> str:
        out = self._new(name)
        paths = [self.workshop.path(one), self.workshop.path(other)]
        lines = self.workshop.models.call(
            "combine_into", adapters=paths, weights=[first, second], kind=how, out=str(out)
        )
        return pages.message("\n".join(lines), "right")


def _with(part: str) -> Any:
    def changed(parts: dict[str, float], value: float) -> dict[str, float]:
        return {**parts, part: value}

    return changed
