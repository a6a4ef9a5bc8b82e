"""Rewinding as the last step of a run: the figures in its record, and starts after something cut it off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orthotune.errors import OutputError, RecipeError
from orthotune.recipes import rewind, sft
from orthotune.recipes.rewind import RewindSettings
from orthotune.recipes.settings import SFTSettings
from orthotune.runs.directory import RunDirectory
from tests.support.tiny_text import texts, write_jsonl


@pytest.fixture
def job(model_path: Path, text_path: Path, old_path: Path, tmp_path: Path) -> dict[str, Any]:
    held_out = write_jsonl(tmp_path / "held-out.jsonl", texts(6, "blau"))
    return {
        "model": str(model_path), "data": str(text_path), "eval_data": str(held_out), "old_data": str(old_path),
        "steps": 4, "batch_size": 2, "max_length": 32, "learning_rate": 3e-2, "block_size": 8,
        "output": tmp_path / "run", "rewind": "auto",
    }  # fmt: skip


def _run(job: dict[str, Any], said: list[str] | None = None, **changes: Any) -> Any:
    say = (lambda _: None) if said is None else said.append
    return sft.run(SFTSettings(**(job | changes)), say=say, bar=False)


def _record(job: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((job["output"] / "run.json").read_text())
    return found


def test_the_figures_are_in_the_record_and_the_adapter_beside_the_other(job: dict[str, Any], tmp_path: Path) -> None:
    said: list[str] = []
    record = _run(job, said, rewind="kind")
    assert _record(job) == json.loads(record.model_dump_json())
    found = record.rewound
    assert found["by"] == "kind" and set(found["strengths"]) == {"attention", "mlp"}
    assert record.artifacts["rewound"] == "rewound"
    assert (job["output"] / "rewound" / "adapter" / "adapter_model.safetensors").is_file()
    # The same as the command gives for the finished run.
    again = rewind.run(RewindSettings(run=job["output"], by="kind", output=tmp_path / "again"), lambda _: None)
    assert again.strengths == found["strengths"]
    assert again.rows["chosen"] == {key: found[key] for key in ("gain", "forgetting")}
    assert again.rows["as trained"] == found["as_trained"]
    table = said[-4:]
    assert table == again.table() and "as trained" in table[1] and f"gain {found['gain']:+.3f}" in table[3]
    said.clear()
    assert _run(job, said, rewind="kind", resume="auto") == record and len(said) == 1


def test_a_start_after_a_kill_rewinds_and_does_not_train(job: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(rewind, "run", killed)
        with pytest.raises(KeyboardInterrupt):
            _run(job)
    assert _record(job)["rewound"] is None and not (job["output"] / "rewound").exists()
    lines = (job["output"] / "metrics.jsonl").read_bytes()
    record = _run(job, resume="auto")
    assert record.rewound["strengths"].keys() == {"all"} and _record(job)["rewound"] == record.rewound
    assert (job["output"] / "metrics.jsonl").read_bytes() == lines

    # Killed between the folder and the record: the folder is taken, and nothing is computed again.
    (job["output"] / "run.json").write_text(json.dumps(_record(job) | {"rewound": None}))
    with monkeypatch.context() as patched:
        patched.setattr(rewind, "run", killed)
        assert _run(job, resume="auto").rewound == record.rewound

    # A rewinding that somebody else made there is not overwritten.
    (job["output"] / "run.json").write_text(json.dumps(_record(job) | {"rewound": None}))
    other = json.loads((job["output"] / "rewound" / "rewind.json").read_text())
    other["settings"]["weight"] = 2.0
    (job["output"] / "rewound" / "rewind.json").write_text(json.dumps(other))
    said: list[str] = []
    with pytest.raises(OutputError, match="another rewinding"):
        _run(job, said, resume="auto")
    assert any("is finished; rewinding failed" in words for words in said)


def test_one_process_rewinds_a_run(job: dict[str, Any]) -> None:
    _run(job, rewind="none")
    with RunDirectory(job["output"]).locked(), pytest.raises(OutputError, match="still going on"):
        rewind.finish(SFTSettings(**job), lambda _: None)
    assert not (job["output"] / "rewound").exists()


def test_too_few_texts_are_refused_before_training(job: dict[str, Any], tmp_path: Path) -> None:
    few = write_jsonl(tmp_path / "few.jsonl", texts(1, "red"))
    for key in ("eval_data", "old_data"):
        with pytest.raises(RecipeError, match=f"{key}: held-out texts.*at least 4.*{key}=FILE"):
            _run(job, **{key: str(few)})
    assert not job["output"].exists()


def test_a_fit_of_magnitudes_can_be_rewound(job: dict[str, Any], tmp_path: Path) -> None:
    from orthotune.recipes import magnitude

    _run(job, rewind="none")
    settings = magnitude.load_magnitude(None, [f"adapter={job['output']}", "steps=2", f"output={tmp_path / 'fit'}"])
    assert (settings.rewind, settings.stop_when, settings.result) == ("none", {}, "last")
    magnitude.run(settings, say=lambda _: None, bar=False)
    found = rewind.run(RewindSettings(run=tmp_path / "fit", tokens=600), lambda _: None)
    assert found.strengths.keys() == {"all"}
