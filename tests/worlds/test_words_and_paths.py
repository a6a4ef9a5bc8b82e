"""A file or folder with the name of built-in data is neither passed over nor taken without a word."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orthotune.errors import DataError
from orthotune.recipes import classify, embed, speech, tokens
from orthotune.recipes.preference_data import load_preferences
from orthotune.recipes.prompt_data import load_prompts
from orthotune.recipes.sft_data import load_texts
from orthotune.text.preferences import PAIRS

#: What reads a setting as ``data``, and the built-in data that it knows by a word.
READERS: dict[str, tuple[Callable[[str], Any], tuple[str, ...]]] = {
    "texts": (load_texts, ("text-world/new_test", "manpages-fr/train", "handbook/test", "dictionary/validation")),
    "preferences": (lambda source: load_preferences(source, PAIRS), ("text-world/new_test",)),
    "prompts": (lambda source: load_prompts(source, "prompt"), ("arithmetic/test", "python-methods/train")),
    "classes": (lambda source: classify._read(source, "auto"), ("text-world/passages", "text-world/passages/held_out")),
    "tags": (tokens._read, ("text-world/code-words",)),
    "pairs": (embed._rows, ("text-world/pairs",)),
    "speech": (speech._read, ("tone-words", "tone-words/held_out")),
}
CASES = [(name, word) for name, (_, words) in READERS.items() for word in words]


@pytest.mark.parametrize(("name", "word"), CASES)
def test_a_folder_of_the_name_is_an_error_that_says_how_to_name_either(
    name: str, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(word).mkdir(parents=True)
    with pytest.raises(DataError, match=f"data '{word}'. Found: a file or folder here with the name") as found:
        READERS[name][0](word)
    assert f"Write ./{word} for what is here. For the built-in data, run the command in another" in str(found.value)


def test_what_is_meant_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    built_in = len(load_texts("text-world/new_test").rows)
    mine = Path("text-world") / "mine"
    mine.mkdir(parents=True)
    (mine / "own.jsonl").write_text(json.dumps({"text": "mine"}) + "\n", encoding="utf-8")
    assert [row["text"] for row in load_texts("./text-world/mine").rows] == ["mine"]
    assert len(load_texts("text-world/new_test").rows) == built_in  # no path here has this name
