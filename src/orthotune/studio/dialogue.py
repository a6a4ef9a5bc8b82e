"""A dialogue of several messages with a language model, its adapter at the strengths of the tab After and off."""

from __future__ import annotations

from typing import Any

import gradio as gr

from orthotune.errors import OrthotuneError
from orthotune.studio import pages
from orthotune.studio.workshop import Workshop


class Dialogue:
    """The part of the tab, and its functions. The dialogue belongs to one open page, and goes with it.

    Args:
        workshop: of the page.
        source: the component with the run or adapter.
        given: those with the strength, the tokens, the seed, what has a strength of its own, and these strengths.
    """

    def __init__(self, workshop: Workshop, source: Any, given: list[Any]) -> None:
        self.workshop = workshop
        exchanges, messages = gr.State([]), gr.State([])
        with gr.Accordion("Dialogue of several messages", open=False):
            shown = gr.HTML(elem_id="dialogue")
            text = gr.Textbox(label="Message", elem_id="message",
                              info="The dialogue goes on with the answer of the adapter.")  # fmt: skip
            with gr.Row():
                send = gr.Button("Send", elem_id="send")
                again = gr.Button("Begin again", elem_id="begin-again")
        outputs = [exchanges, messages, text, shown]
        for event in (send.click, text.submit):
            event(self._send, [source, exchanges, messages, text, *given], outputs, concurrency_id="dialogue",
                  concurrency_limit=1)  # fmt: skip
        again.click(_empty, None, outputs, show_progress="hidden")
        # Of a person alone: a list that is filled again must not take away what was written meanwhile.
        source.input(lambda: ([], [], ""), None, [exchanges, messages, shown], show_progress="hidden")

    def _send(
        self, chosen: str | None, exchanges: list[dict[str, Any]], messages: list[dict[str, str]], text: str,
        strength: float, most: float, seed: float | None, by: str, parts: dict[str, float],
    ) -> tuple[Any, ...]:  # fmt: skip
        if exchanges and exchanges[-1]["source"] != chosen:  # of another run or adapter
            exchanges, messages = [], []
        try:
            found = self.workshop.models.call(
                "chat_on", source=self.workshop.path(chosen), messages=messages, text=text, strength=strength,
                most=int(most), seed=int(seed or 0), by=by, parts=parts,
            )  # fmt: skip
        except (OrthotuneError, OSError) as fault:  # the message stays to be changed
            return exchanges, messages, gr.skip(), pages.dialogue(exchanges, str(fault))
        one = {"message": text.strip(), "base": found["base"], "text": found["text"], "notes": found["notes"]}
        exchanges = [*exchanges, one | {"heading": pages.at(strength, parts), "source": chosen}]
        return exchanges, found["messages"], "", pages.dialogue(exchanges)


def _empty() -> tuple[Any, ...]:
    return [], [], "", ""
