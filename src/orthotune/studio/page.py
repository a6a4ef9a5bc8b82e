"""The page: four tabs, and how it looks."""

from __future__ import annotations

from typing import Any

import gradio as gr

from orthotune.studio import pages
from orthotune.studio.after_tab import AfterTab
from orthotune.studio.compare_tab import CompareTab
from orthotune.studio.folders import Folders
from orthotune.studio.run_tab import RunTab
from orthotune.studio.start_tab import StartTab
from orthotune.studio.workshop import Workshop

#: Fonts of the machine: nothing is fetched.
FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]
#: Switches between the two looks; the first one is that of the system.
SWITCH = "() => { document.body.classList.toggle('dark') }"


def make_page(folders: Folders) -> tuple[gr.Blocks, dict[str, Any]]:
    """The page, and the options of its looks.

    Args:
        folders: of the studio.
    """
    workshop = Workshop(folders)
    with gr.Blocks(analytics_enabled=False, title="orthotune studio", delete_cache=(3600, 86400)) as page:
        with gr.Row():
            gr.Markdown("# orthotune studio", elem_id="title")
            gr.Button("Dark or light", size="sm", elem_id="theme", scale=0, min_width=140).click(None, js=SWITCH)
        with gr.Tabs(elem_id="tabs") as tabs:
            with gr.Tab("Start", id="start"):
                start = StartTab(workshop)
            with gr.Tab("Run", id="run") as run_shown:
                run = RunTab(workshop)
            with gr.Tab("After", id="after") as after_shown:
                after = AfterTab(workshop)
            with gr.Tab("Compare", id="compare") as compare_shown:
                compare = CompareTab(workshop, start, tabs)
        for shown, tab in ((run_shown, run), (after_shown, after), (compare_shown, compare)):
            shown.select(*tab.first, show_progress="hidden")
        page.load(*start.first, show_progress="hidden")
        page.load(lambda: 1, None, start.version, show_progress="hidden")
    theme = gr.themes.Base(primary_hue="blue", font=FONTS, font_mono=MONO).set(
        block_info_text_color="*neutral_500", block_info_text_color_dark="*neutral_400"
    )
    return page, {"theme": theme, "head": pages.style()}
