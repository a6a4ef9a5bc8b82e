"""Folders of images as other trainers have them: kohya's ``10_sks cat``, captions in other files, files of phones."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import reduce
from math import gcd
from pathlib import Path
from typing import Any

from orthotune.errors import DataError
from orthotune.files.json_file import read_json
from orthotune.image.data.caption_tables import CaptionRow
from orthotune.image.data.image_folder import NAMED, Say

#: kohya-ss: the number of repeats, and the words that caption the images in the folder
_REPEATS = re.compile(r"(\d+)_(.+)")
#: larger numbers are years and other parts of a name
MOST_REPEATS = 500
#: files with the caption of an image beside it, the first of them that exists (kohya, OneTrainer, ai-toolkit)
CAPTION_SUFFIXES = (".txt", ".caption", ".json")
#: entries of such a JSON file that hold a caption, or tags
_ENTRIES = ("caption", "text", "prompt", "tags")


def concepts(names: Iterable[str]) -> dict[str, int]:
    """The folders of kohya's layout in the names of images, with their repeats; empty for other layouts.

    Args:
        names: paths of images inside of a folder.

    Example:
        >>> concepts(["10_sks cat/0", "1_cat/a/1", "loose"])
        {}
        >>> concepts(["10_sks cat/0", "1_cat/a/1"])
        {'10_sks cat': 10, '1_cat': 1}
    """
    found: dict[str, int] = {}
    for name in names:
        first, slash, _ = name.partition("/")
        match = _as_repeats(first) if slash else None
        if match is None:
            return {}
        found[first] = int(match[1])
    return found


def _as_repeats(folder: str) -> re.Match[str] | None:
    match = _REPEATS.fullmatch(folder)
    return match if match is not None and len(match[1]) <= 9 and int(match[1]) <= MOST_REPEATS else None


def words_of(concept: str) -> str:
    """The words of a folder of kohya's layout, which caption its images.

    Example:
        >>> words_of("10_sks cat")
        'sks cat'
    """
    match = _as_repeats(concept)
    return match[2] if match else concept


def repeated(rows: Sequence[CaptionRow], say: Say) -> list[CaptionRow]:
    """The rows of a folder in kohya's layout as often as their repeats ask for, with the words of their folder as the
    caption of those that have none. Rows of other folders are returned as they are.

    A run is measured in steps, so only the ratio of the repeats matters: 10 and 20 become 1 and 2.

    Args:
        rows: of one folder.
        say: gets a message about what was found.

    Raises:
        DataError: a folder has 0 repeats.
    """
    found = concepts(row.name for row in rows)
    folders = {first for row in rows for first, slash, _ in [row.name.partition("/")] if slash}
    if numbered := sorted(one for one in folders if _REPEATS.fullmatch(one) and not _as_repeats(one)):
        say(f"The numbers of {', '.join(numbered[:NAMED])} are read as a part of the name, not as repeats, of which "
            f"{MOST_REPEATS} is the most.")  # fmt: skip
    if not found:
        if unused := sorted(filter(_as_repeats, folders)):
            odd = [row.name for row in rows if not concepts([row.name])]
            say(f"The repeats of {', '.join(unused[:NAMED])}, as of kohya-ss, are not used: {len(odd)} images are in "
                f"no such folder, {', '.join(odd[:NAMED])}.")  # fmt: skip
        return list(rows)
    if 0 in found.values():
        raise DataError(
            "folders with repeats", got=f"0 in {', '.join(n for n, count in found.items() if not count)}",
            do="Move the folder elsewhere, or give it a number",
        )  # fmt: skip
    common = reduce(gcd, found.values())
    shown = ", ".join(f"{name} ({count // common} of each image)" for name, count in found.items())
    say(f"Folders with repeats, as of kohya-ss: {shown}.")
    result = []
    for row in rows:
        concept = row.name.partition("/")[0]
        result += [replace(row, caption=row.caption or words_of(concept))] * (found[concept] // common)
    return result


def of_subject(rows: Sequence[CaptionRow], subject: str, say: Say) -> list[CaptionRow]:
    """The rows of the folders of kohya's layout whose words name the subject; the others hold images of its class.

    Args:
        rows: of one folder.
        subject: the word for the subject.
        say: gets a message about folders that are not taught as the subject.

    Raises:
        DataError: no folder names the subject.
    """
    found = concepts(row.name for row in rows)
    own = [name for name in found if subject in words_of(name).replace(",", " ").split()]
    if not found or len(own) == len(found):
        return list(rows)
    others = ", ".join(f"{name} ({sum(row.name.startswith(name + '/') for row in rows)} images)"
                       for name in found if name not in own)  # fmt: skip
    if not own:
        raise DataError(
            "folders with repeats, as of kohya-ss", got=others, needed=f"one whose name has the word {subject!r}",
            do="Give token=WORD, or name the folder of the subject's images itself",
        )  # fmt: skip
    say(f"Not taught as the subject, because the names lack {subject!r}: {others}. "
        "They can be the class images: class_images=FOLDER with class_prompt.")  # fmt: skip
    return [row for row in rows if row.name.partition("/")[0] in own]


def caption_beside(file: Path) -> str | None:
    """The caption of an image in a file beside it; None if there is none, or it is empty.

    Args:
        file: the image.

    Raises:
        DataError: the file is not UTF-8, or a JSON file without a caption.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "0.json").write_text('{"tags": ["1girl", "hat"]}')
        >>> caption_beside(folder / "0.png")
        '1girl, hat'
    """
    for suffix in CAPTION_SUFFIXES:
        text = file.with_suffix(suffix)
        if not text.is_file():
            continue
        if suffix == ".json":
            return " ".join(_of_json(text).split()) or None
        try:
            caption = text.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as fault:
            raise DataError(f"caption {text}", got=f"bytes that are not UTF-8 at position {fault.start}") from fault
        return " ".join(caption.split()) or None
    return None


def of_several_lines(files: Iterable[Path]) -> list[str]:
    """A message about captions of several lines, which are read as one caption here and otherwise elsewhere.

    Args:
        files: the images.

    Returns:
        One message, or none.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "0.txt").write_text(chr(10).join(["a cat", "indoors"]))
        >>> of_several_lines([folder / "0.png"])[0].partition(":")[0]
        '1 captions have several lines, which are read as one caption'
    """
    beside = (next((t for s in CAPTION_SUFFIXES if (t := file.with_suffix(s)).is_file()), None) for file in files)
    texts = [text for text in beside if text is not None and text.suffix != ".json"]
    found = [text.name for text in texts if len(_lines(text)) > 1]
    if not found:
        return []
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    named = f"{', '.join(found[:NAMED])}{more}"
    return [f"{len(found)} captions have several lines, which are read as one caption: {named}. sd-scripts reads the "
            "first line alone; leave one line if the others are alternatives."]  # fmt: skip


def _lines(text: Path) -> list[str]:
    try:
        return [line for line in text.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError:  # refused where it is read as a caption
        return []


def _of_json(path: Path) -> str:
    found = read_json(path, named="caption", needed=f"an object with a text under {', '.join(_ENTRIES)}")
    value: Any = next((found[key] for key in _ENTRIES if found.get(key)), None)
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return ", ".join(value)
    if not isinstance(value, str):
        raise DataError(f"caption {path}", got="no caption", needed=f"a text under {', '.join(_ENTRIES)}")
    return value


def lacking(captions: Iterable[tuple[str, str]], word: str) -> list[str]:
    """A message about captions that lack the word for the subject; empty if all have it.

    Args:
        captions: name of an image, and its caption.
        word: for the subject.

    Example:
        >>> lacking([("0", "1girl, cat"), ("1", "a sks cat")], "sks")[0].partition(", so")[0]
        "1 of 2 captions does not hold 'sks'"
    """
    seen = list(captions)
    found = [name for name, caption in seen if word not in caption.replace(",", " ").split()]
    if not found:
        return []
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    does, its = ("does", "its image does") if len(found) == 1 else ("do", "their images do")
    return [f"{len(found)} of {len(seen)} captions {does} not hold {word!r}, so {its} not teach the word: "
            f"{', '.join(found[:NAMED])}{more}. Add it, or instance_captions=false."]  # fmt: skip
