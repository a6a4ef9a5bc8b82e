"""Checkpoints: whole or not there, known when altered, the newest sound one used, the last ones kept."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from orthotune.errors import OutputError, RecipeError
from orthotune.runs.checkpoint_folder import by_step, new_checkpoint, newest, sweep
from orthotune.runs.checkpoint_manifest import MANIFEST, check
from orthotune.runs.directory import RunDirectory, step_of


def _write(home: Path, step: int, keep: int | None = None) -> Path:
    with new_checkpoint(home, step, keep) as folder:
        (folder / "weights").write_bytes(bytes(range(256)) * 4)
        (folder / "inner").mkdir()
        (folder / "inner" / "empty").touch()
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return home / f"checkpoint-{step}"


def test_a_checkpoint_appears_with_its_checksums(tmp_path: Path) -> None:
    path = _write(tmp_path / "new" / "folder", 7)
    assert check(path) == step_of(path) == 7
    assert set(json.loads((path / MANIFEST).read_text())["files"]) == {"weights", "inner/empty", "trainer_state.json"}
    assert [found.name for found in path.parent.iterdir()] == ["checkpoint-7"]


def test_what_fails_in_between_leaves_the_one_before(tmp_path: Path) -> None:
    _write(tmp_path, 1, keep=1)
    with pytest.raises(RuntimeError), new_checkpoint(tmp_path, 2, keep=1) as folder:
        (folder / "weights").touch()
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


@pytest.mark.parametrize("name", ["weights", "trainer_state.json", MANIFEST])
@pytest.mark.parametrize("how", ["flipped", "cut off", "longer", "gone"])
def test_any_change_of_any_file_is_seen_and_the_one_before_is_used(tmp_path: Path, name: str, how: str) -> None:
    sound, hurt = _write(tmp_path, 9), _write(tmp_path, 10)
    raw = bytearray((hurt / name).read_bytes())
    if how == "flipped":
        # every bit of a manifest counts, its own spaces alone do not
        raw[len(raw) // 2 + next(i for i, byte in enumerate(raw[len(raw) // 2 :]) if byte not in b" \n")] ^= 4
    (hurt / name).write_bytes(raw[:-9] if how == "cut off" else raw + b"\0" if how == "longer" else raw)
    if how == "gone":
        (hurt / name).unlink()
    said: list[str] = []
    assert newest(tmp_path, said.append) == sound
    if (how, name) != ("gone", MANIFEST):
        assert len(said) == 1 and "checkpoint-10" in said[0] and said[0].endswith("The one before it is used.")
        with pytest.raises(OutputError, match=f"checkpoint-10.*{name}"):
            check(hurt)
        with pytest.raises(RecipeError, match="resume=.*checkpoint-10.*resume=auto"):
            RunDirectory(tmp_path / "run").open({}, str(hurt))


def test_a_byte_of_the_manifest_itself_is_covered(tmp_path: Path) -> None:
    path = _write(tmp_path, 3) / MANIFEST
    path.write_text(path.read_text().replace('"step": 3', '"step": 4'))
    with pytest.raises(OutputError, match=r"manifest\.json that was altered"):
        step_of(path.parent)


def test_a_manifest_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    from orthotune.runs import checkpoint_manifest as module

    path = _write(tmp_path, 3) / MANIFEST
    content = json.loads(path.read_text())
    content.pop("sha256")
    content["files"]["../../outside"] = content["files"]["weights"]
    path.write_text(json.dumps({**content, "sha256": module._digest(content)}))
    with pytest.raises(OutputError, match="leads out of it"):
        check(path.parent)


def test_the_last_ones_are_kept_by_their_step(tmp_path: Path) -> None:
    for step in (2, 9, 10):
        _write(tmp_path, step, keep=2)
    assert [path.name for path in by_step(tmp_path)] == ["checkpoint-10", "checkpoint-9"]
    _write(tmp_path, 4, keep=1)  # a run that went back to an older one: what was just written stays
    assert [path.name for path in by_step(tmp_path)] == ["checkpoint-4"]


def test_a_checkpoint_that_is_written_again_replaces_its_former_self(tmp_path: Path) -> None:
    path = _write(tmp_path, 5)
    (path / "weights").write_bytes(b"")
    assert check(_write(tmp_path, 5)) == 5
    assert [found.name for found in tmp_path.iterdir()] == ["checkpoint-5"]


def test_leftovers_of_a_killed_process_are_swept(tmp_path: Path) -> None:
    path = _write(tmp_path, 5)
    os.replace(path, tmp_path / ".checkpoint-5.old")  # killed between the two renames of an exchange
    (tmp_path / ".checkpoint-6.part").mkdir()
    (tmp_path / ".mine").touch()
    sweep(tmp_path)
    assert sorted(found.name for found in tmp_path.iterdir()) == [".mine", "checkpoint-5"]
    home = RunDirectory(tmp_path / "run")
    (home.path / ".adapter.0.part").mkdir()
    home.claim({})
    assert [found.name for found in home.path.iterdir()] == ["settings.json"]
