"""The corpus of the text world: prose comes out of the code, and every paragraph is in one place."""

from __future__ import annotations

import ast

from text_corpus import collect, hash_position, squeeze, take_docstrings

LONG = (
    "Tells at length what this is for, and when one would rather not use it at all.\n\n"
    "    Second paragraph: {} of it, with enough words to count."
)


def test_long_docstrings_leave_the_code_and_short_ones_stay():
    code = f'"""{LONG.format("module")}"""\nclass A:\n    """Short."""\nclass B:\n    """{LONG.format("B")}"""\n'
    stripped, paragraphs = take_docstrings(code)
    assert len(paragraphs) == 4 and "Short." in stripped and "Second paragraph" not in stripped
    names = {node.name: node for node in ast.parse(stripped).body if isinstance(node, ast.ClassDef)}
    assert isinstance(names["B"].body[0], ast.Pass)


def test_docstring_that_shares_its_line_with_code_stays():
    code = f'class A: """{LONG.format("A")}"""\nclass B:\n    """{LONG.format("B")}"""; y = 2\n'
    assert take_docstrings(code) == (code, [])


def test_collect_keeps_prose_once_and_leaves_out_tests(tmp_path):
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "test_a.py").write_text("x = 'a file of tests'\n" * 20)
    (tmp_path / "broken.py").write_bytes(b"# \xff\xfe\n" * 50)
    for name in ("a", "b", "c"):
        body = "\n".join(f"value_of_{name}_number_{n} = '{name}' * {n}  # line {n} of file {name}" for n in range(400))
        (tmp_path / f"{name}.py").write_text(f'"""{LONG.format("the same")}"""\n{body}\n')
    corpus = collect(tmp_path)
    sources = [doc["source"] for doc in corpus.pretraining]
    sources += [doc["source"] for name in ("old_test", "old_validation") for doc in corpus.splits[name]]
    assert sorted(sources) == ["a.py", "b.py", "c.py"]
    prose = [squeeze(doc["text"]) for name in corpus.splits if "new" in name for doc in corpus.splits[name]]
    assert sum("the same of it" in text for text in prose) <= 1


def test_place_depends_on_the_name_alone():
    assert (
        hash_position("asyncio/base_events.py")
        == hash_position("asyncio/base_events.py")
        != hash_position("asyncio/events.py")
    )
    assert 0 <= hash_position("") < 1
