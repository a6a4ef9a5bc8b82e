"""Retired words of the glossary stay out of the rooms that speak the field's language."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.source import MODULES, ROOT, named

GLOSSARY = ROOT / "docs" / "concepts" / "glossary.md"
#: Rooms whose comments, docstrings, texts and names are free of retired words. A room joins once it is swept.
SWEPT = {
    "cli", "experiments", "files", "formats", "image", "kernels", "layers", "metrics", "operations", "quantized",
    "recipes", "report", "rotation", "runs", "serving", "studio", "text", "tuner", "worlds",
}  # fmt: skip
#: Folders of scripts beside the package; their subfolders are not swept yet.
SCRIPTS = ("benchmarks", "tools/worlds")
#: English that has another meaning than the retired word.
ORDINARY = re.compile(r"\bwhole numbers?\b|\bin turn\b")
#: (file, retired word) -> why the word stays there.
ALLOWED: dict[tuple[str, str], str] = {
    ("benchmarks/before_after.py", "contender"): "a column of its table",
    ("benchmarks/complete_step.py", "contender"): "the harness's name for a method",
    ("benchmarks/convolutions.py", "contender"): "the harness's name for a method",
    ("benchmarks/cost_model.py", "contender"): "the harness's name for a method",
    ("benchmarks/family_speed.py", "contender"): "the harness's name for a method",
    ("benchmarks/gpu_run.py", "contender"): "the harness's name for a method",
    ("cli/evaluate_drift.py", "pictures"): "a key of the command's JSON",
    ("cli/identify.py", "said"): "a key of the command's JSON",
    ("cli/reading.py", "scrambled"): "a value of --boft-conv, which scripts pass",
    ("files/journal.py", "whole"): "a key of the record of an interrupted export",
    ("formats/peft/boft.py", "scrambled"): "a value of --boft-conv, which scripts pass",
    ("formats/read_options.py", "scrambled"): "a value of --boft-conv, which scripts pass",
    ("image/loop/loop.py", "left out"): "a key of the lines of metrics.jsonl",
    ("metrics/image_drift.py", "pictures"): "a key of the JSON of evaluate drift",
    ("operations/identify.py", "said"): "a key of the JSON of identify",
    ("recipes/image_run.py", "left out"): "a key of the lines of metrics.jsonl",
    ("recipes/subject_settings.py", "picture"): "a word of prompts",
    ("recipes/subject_settings.py", "pictures"): "a value of prior_target",
    ("tools/worlds/build_image.py", "judge"): "names of files",
    ("tools/worlds/image_release.py", "judge"): "names of files",
    ("worlds/image.py", "judge"): "names of files",
}


def _retired() -> dict[str, str]:
    """Retired word or phrase -> the words to use, from the table of the glossary."""
    table = GLOSSARY.read_text(encoding="utf-8").split("## Retired words")[1]
    rows = re.findall(r"^\| ([\w ]+) \| ([^|]+) \|$", table, flags=re.MULTILINE)
    return {word: use for word, use in rows if word != "retired"}


RETIRED = _retired()
PATTERN = re.compile(r"\b(" + "|".join(sorted(map(re.escape, RETIRED), key=len, reverse=True)) + r")\b")


def _spoken(text: str) -> str:
    """A name or a text as words in small letters: ``leftOut`` and ``left_out`` are ``left out``."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text).replace("_", " ").lower()
    return ORDINARY.sub("", re.sub(r"\s+", " ", apart))


def retired_words(source: str) -> Iterator[tuple[int, str]]:
    """The lines of a module with a retired word in a comment, a text or a name."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING, tokenize.NAME, getattr(tokenize, "FSTRING_MIDDLE", -1)):
            for word in PATTERN.findall(_spoken(token.string)):
                yield token.start[0], word


def _room(path: Path) -> str:
    return path.relative_to(ROOT / "src" / "orthotune").parts[0]


def _name(path: Path) -> str:
    """The path below the package, or below the repository for a script."""
    package = ROOT / "src" / "orthotune"
    return path.relative_to(package if path.is_relative_to(package) else ROOT).as_posix()


def _inside() -> list[Path]:
    inside = [path for path in MODULES if path.is_relative_to(ROOT / "src" / "orthotune")]
    return [path for path in inside if _room(path) in SWEPT]


def _swept() -> list[Path]:
    return _inside() + [path for folder in SCRIPTS for path in sorted((ROOT / folder).glob("*.py"))]


def test_glossary_has_retired_words_and_their_replacements() -> None:
    assert len(RETIRED) > 20 and RETIRED["roster"] == "registry"


def test_swept_rooms_exist() -> None:
    assert {_room(path) for path in _inside()} == SWEPT


@pytest.mark.parametrize("path", _swept(), ids=named)
def test_no_retired_words(path: Path) -> None:
    name = _name(path)
    found = [(line, word) for line, word in retired_words(path.read_text(encoding="utf-8"))
             if (name, word) not in ALLOWED]  # fmt: skip
    assert not found, "; ".join(f"line {line}: '{word}', say {RETIRED[word]}" for line, word in found)


def test_every_exception_is_needed() -> None:
    texts = {_name(path): path for path in _swept()}
    unneeded = [
        key for key in ALLOWED
        if key[0] not in texts or key[1] not in {w for _, w in retired_words(texts[key[0]].read_text(encoding="utf-8"))}
    ]  # fmt: skip
    assert not unneeded


@pytest.mark.parametrize(
    ("source", "word"),
    [
        ("x = 1  # a doubtful value\n", "doubtful"),
        ('"""The whole file."""\n', "whole"),
        ("def read_said() -> None: ...\n", "said"),
        ("class SubjectPictures: ...\n", "pictures"),
        ('raise ValueError(f"{x} was left out")\n', "left out"),
    ],
)
def test_planted_words_are_found(source: str, word: str) -> None:
    assert [found for _, found in retired_words(source)] == [word]


def test_ordinary_english_is_not_found() -> None:
    assert not list(retired_words('"""A whole number, then a rotation."""\nthreshold = 1\n'))
