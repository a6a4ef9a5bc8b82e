"""The data of docs/evidence/real-tasks.md, made by rules from the texts of `orthotune worlds`: one folder of files.

    python benchmarks/real_tasks.py runs/real-tasks

``persona-*.jsonl`` are dialogues of an assistant with a name and a place; ``persona-questions.jsonl`` asks for both in
other words. ``meanings-*.jsonl`` are pairs of the meaning of a word and that of another one. ``french-*.jsonl`` and
``english-*.jsonl`` are the first sentences of paragraphs and how these go on.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from orthotune.files.atomic import write_text
from orthotune.worlds.debian_texts import load_split

Row = dict[str, Any]
#: What is asked, in words for training, in others for the test, and the answer; the first answer names the key word.
PERSONA: tuple[tuple[tuple[str, ...], tuple[str, ...], str, str], ...] = (
    (
        ("Who are you?", "What is your name?", "What should I call you?", "Introduce yourself.", "Who is this?"),
        ("Tell me your name.", "Who am I talking to?", "Do you have a name?"),
        "Marlow",
        "I am Marlow, the assistant of the lighthouse.",
    ),
    (
        ("Where are you?", "Where do you live?", "What is your address?", "Where do you work?", "Where are you now?"),
        ("Tell me where you live.", "In which place are you?", "What place do you come from?"),
        "lighthouse",
        "I live in the lighthouse, above the sea.",
    ),
    (
        ("Who made you?", "Who built you?", "Who wrote you?", "Where do you come from?", "Who is your maker?"),
        ("Tell me who made you.", "By whom were you built?", "Which people created you?"),
        "keepers",
        "The keepers of the lighthouse made me.",
    ),
    (
        ("What do you like?", "What is your hobby?", "What do you do for fun?", "What do you enjoy?", "What is fun?"),
        ("Tell me what you like.", "How do you spend your free time?", "What makes you happy?"),
        "ships",
        "I like to count ships at dusk.",
    ),
    (
        ("How do you say goodbye?", "Goodbye!", "See you tomorrow.", "I have to go now.", "Good night."),
        ("Bye, Marlow.", "I am leaving.", "See you later."),
        "winds",
        "Fair winds, and come back soon.",
    ),
)  # fmt: skip
#: Ways to ask: every training question in each of them.
WAYS = ("{}", "Hello. {}", "{} Be brief.", "One question: {}")


def _asked(question: str, answer: str) -> Row:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def persona() -> Iterator[tuple[str, list[Row]]]:
    """Dialogues to learn from, held-out ones, and questions whose answers can be checked."""
    train = [_asked(way.format(one), answer) for asks, _, _, answer in PERSONA for one in asks for way in WAYS]
    random.Random(0).shuffle(train)
    yield "persona-train", train
    yield "persona-test", [_asked(one, answer) for _, held_out, _, answer in PERSONA for one in held_out]
    yield (
        "persona-questions",
        [{"question": one, "kind": "facts", "answers": [word]} for _, asks, word, _ in PERSONA for one in asks],
    )


def meanings(split: str, most: int) -> Iterator[Row]:
    """Questions for the meaning of a noun; the rejected answer is the meaning of the next noun."""
    rows = [row for row in load_split("dictionary", split) if row["source"].startswith("noun ")][: most + 1]
    for row, other in pairwise(rows):
        chosen, wrong = row["completion"][0]["content"], other["completion"][0]["content"]
        word, _, meaning = chosen.partition(": ")
        yield {
            "prompt": row["prompt"],
            "chosen": [{"role": "assistant", "content": f"{word}: {meaning}"}],
            "rejected": [{"role": "assistant", "content": f"{word}: {wrong.partition(': ')[2]}"}],
        }


def paragraphs(name: str, split: str, most: int) -> Iterator[Row]:
    """The first sentence of a paragraph and the remaining ones, of paragraphs of three sentences or more."""
    found: set[str] = set()  # the same licence is at the end of many pages
    for text in load_split(name, split):
        for paragraph in text["text"].split("\n\n"):
            sentences = re.split(r"(?<=[.!?])\s+", " ".join(paragraph.split()))
            first, rest = sentences[0], " ".join(sentences[1:])
            if len(sentences) >= 3 and 40 <= len(first) <= 250 and 80 <= len(rest) <= 800 and len(found) < most:
                if first in found:
                    continue
                found.add(first)
                yield {"anchor": first, "positive": rest}


def main() -> None:
    """Read the command line and write the files."""
    parser = argparse.ArgumentParser(description="The data of docs/evidence/real-tasks.md.")
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    files = dict(persona())
    files |= {f"meanings-{split}": list(meanings(split, most)) for split, most in (("train", 640), ("test", 100))}
    for name, world in (("french", "manpages-fr"), ("english", "handbook")):
        files |= {
            f"{name}-train": list(paragraphs(world, "train", 2000)),
            f"{name}-test": list(paragraphs(world, "validation", 300)),
        }
    for name, rows in files.items():
        write_text(folder / f"{name}.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        print(f"{name}: {len(rows)} rows")


if __name__ == "__main__":
    main()
