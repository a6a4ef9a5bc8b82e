"""Runs on several sets of data: settings of each, shares, the same bits after an interruption, and wrong settings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from orthotune.errors import OrthotuneError
from orthotune.recipes import sft
from orthotune.recipes.load import load_settings
from orthotune.recipes.settings import SFTSettings
from orthotune.recipes.sft_data import examples_for
from tests.support.tiny_text import save_model, write_jsonl


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixed")
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    write_jsonl(folder / "talks.jsonl", [{"messages": talk, "n": n} for n in range(40)])
    write_jsonl(folder / "texts.jsonl", [{"text": f"text {n}"} for n in range(30)])
    lines = [f"question {n};answer {n}" for n in range(10)]
    (folder / "pairs.csv").write_text("\n".join(["asked;answered", *lines, ""]))
    save_model(folder / "model", "float32", chat=True)
    return folder


def _settings(folder: Path, *words: str) -> SFTSettings:
    sets = (
        f"data=[{{path: {folder}/talks.jsonl, weight: 0.5, system_prompt: s}}, "
        f"{{path: {folder}/texts.jsonl, weight: 0.3}}, "
        f"{{path: {folder}/pairs.csv, weight: 0.2, columns: {{prompt: asked, completion: answered}}}}]"
    )
    given = [sets, f"model={folder}/model", "old_data=none", "max_length=32", "batch_size=2", "steps=2", "eval_every=2"]
    return load_settings(SFTSettings, None, [*given, *words])


def test_sets_have_settings_of_their_own_and_are_held_out_from_first(folder: Path) -> None:
    examples, domains = examples_for(_settings(folder, "mixture_stop=last"))
    assert examples.format == "mixed" and len(examples.rows) == 48 + 29 + 19
    # 2 of 40, 1 of 30, and none of 10, of which nobody can spare one.
    assert [sorted(row) for row in domains["new"].rows] == [["messages"]] * 2 + [["text"]]
    assert domains["new"].rows[0]["messages"][0] == {"role": "system", "content": "s"}
    held = {domains["new"].place(n) for n in range(3)}
    assert not held & set(examples.places)
    assert examples_for(_settings(folder, "mixture_stop=last"))[0] == examples
    assert examples_for(_settings(folder, "mixture_stop=last", "seed=1"))[0].rows != examples.rows


def test_a_mixed_run_is_the_same_after_an_interruption(folder: Path) -> None:
    said: list[str] = []
    adapters = []
    for name in ("one", "two"):
        settings = _settings(folder, f"output={folder / name}", "save_every=1", "loss_on=answers")
        sft.run(settings, say=said.append, bar=False)
        if name == "two":  # as a run that was killed after its first step
            first, second = (folder / name / "checkpoints" / f"checkpoint-{step}" for step in (1, 2))
            (folder / name / "run.json").unlink()
            shutil.rmtree(second)
            written = first.stat().st_mtime_ns
            sft.run(settings.model_copy(update={"resume": "auto"}), say=said.append, bar=False)
            assert first.stat().st_mtime_ns == written and second.is_dir()  # it went on after the first step
        adapters.append(load_file(folder / name / "adapter" / "adapter_model.safetensors"))
    assert all((adapters[0][key] == adapters[1][key]).all() for key in adapters[0])
    for words in (
        "form: messages, 40 rows of ",
        "mixture: 50 rows, 50.0% ",
        "30.0% ",
        "20.0% ",
        "Columns that are not",
    ):
        assert words in said[0], words
    record = json.loads((folder / "one" / "run.json").read_text())
    assert record["settings"]["data"][2]["columns"] == {"prompt": "asked", "completion": "answered"}
    assert SFTSettings(**record["settings"]).record() == record["settings"]


def test_one_set_as_a_mapping_and_names_alone(folder: Path) -> None:
    one = load_settings(
        SFTSettings, None, ["model=m", f"data={{path: {folder}/texts.jsonl, format: text}}", "old_data=none"]
    )
    assert examples_for(one)[0].source == f"{folder}/texts.jsonl"
    two = load_settings(SFTSettings, None, ["model=m", f"data=[{folder}/texts.jsonl, {folder}/talks.jsonl]"])
    assert [one.weight for one in two.sets] == [1.0, 1.0]
    hub = load_settings(SFTSettings, None, ["model=m", "data={path: owner/name, config: en}"])
    assert hub.sets[0].source == "owner/name:en:train"


A = "path: a.jsonl"
FAULTS: list[tuple[str, str]] = [
    ("data=[]", "command line: data is an empty list. Name at least one set"),
    ("data=3", "data is 3, which names no path. Write data=."),
    (f"data=[{{{A}, weight: 0}}, b.csv]", "data.0.: weight=0. Write a number above 0, or leave the set out"),
    (f"data=[b.csv, {{{A}, weight: -1.5}}]", "data.1.: weight=-1.5. Write a number above 0"),
    (f"data=[b.csv, {{{A}, weight: .nan}}]", "data.1.: weight=nan is not a number"),
    (f"data=[b.csv, {{{A}, weight: most}}]", "data.1.: weight='most' is not a number"),
    (f"data=[b.csv, {{{A}, wieght: 1}}]", "data.1. has the unknown key 'wieght'. Did you mean 'weight'"),
    ("data=[{weight: 1}]", "data.0. is {'weight': 1}, which names no path"),
    (
        f"data=[{{{A}, format: alpacca}}]",
        "data.0.: format='alpacca', and needed is 'auto', 'text', 'prompt-completion'",
    ),
    (f"data=[{{{A}, columns: prompt}}]", "data.0.: columns='prompt', and needed is a valid dictionary"),
    ("data=a.jsonl mixture_stop=last", "mixture_stop has no meaning for one set of data"),
    ("data=[a.jsonl, b.jsonl] mixture_stop=never", "mixture_stop='never'. Needed: 'first' or 'last'"),
    ("data=a.jsonl data_format=csv", "data_format='csv'. Needed: 'auto', 'text'"),
]


@pytest.mark.parametrize(("words", "message"), FAULTS)
def test_settings_of_data_that_cannot_be_meant(words: str, message: str) -> None:
    given: list[Any] = words.replace(" mixture", "\nmixture").replace(" data_", "\ndata_").split("\n")
    with pytest.raises(OrthotuneError, match=message):
        load_settings(SFTSettings, None, ["model=m", *given])
