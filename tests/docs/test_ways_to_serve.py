"""The table of programs that serve: every way names the test that holds it, or says that it is not tested."""

from __future__ import annotations

import pytest

from tests.support.page_blocks import DOCS, TEST_LINK, missing_tests

TEXT = (DOCS / "how-to" / "which-way-to-serve.md").read_text(encoding="utf-8")
HEADER = ["program", "unmerged", "merged", "as LoRA", "run with"]


def _rows(text: str) -> list[list[str]]:
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    lines = [[cell.strip() for cell in row] for row in rows]
    return lines[lines.index(HEADER) + 2 :]


def _faults(rows: list[list[str]]) -> list[str]:
    found = []
    for program, *ways, run_with in rows:
        for heading, way in zip(HEADER[1:], ways, strict=False):
            if not (TEST_LINK.search(way) or way == "no" or "not tested" in way):
                found.append(f"{program}, {heading}: neither a test, nor no, nor not tested: {way}")
        if not run_with:
            found.append(f"{program}: what the tests run is not said")
    return found


def test_every_way_names_its_test() -> None:
    rows = _rows(TEXT)
    assert {"transformers, PEFT", "diffusers", "vLLM", "llama.cpp", "Ollama", "ComfyUI"} <= {row[0] for row in rows}
    assert not _faults(rows) and all(len(row) == len(HEADER) for row in rows)
    assert len(TEST_LINK.findall(TEXT)) > 12 and not missing_tests(TEXT)


@pytest.mark.parametrize("way", ["exact", "[exact](comfyui.md)", ""])
def test_a_way_without_a_test_is_seen(way: str) -> None:
    assert _faults([["vLLM", way, "no", "a folder; not tested", "the engine"]])
