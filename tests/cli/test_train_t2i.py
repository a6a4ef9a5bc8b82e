"""``orthotune train t2i``: its plan, and what it says of data that it cannot use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from orthotune.worlds import image, image_folders

pytestmark = pytest.mark.skipif(not (image.PIPELINE / "model_index.json").is_file(), reason="no image world here")


def test_a_dry_run_shows_pictures_and_buckets_and_leaves_nothing(
    call: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = image_folders.write_captioned(tmp_path / "nines", 3)
    monkeypatch.chdir(tmp_path)
    done = call("train", "t2i", "--data", folder, "--dry-run", "steps=3")
    assert done.exit_code == 0, done.stderr
    assert "images      3: 3 of 32 x 32" in done.stdout and "steps       3" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["nines"]


def test_missing_captions_name_the_picture(call: Callable, tmp_path: Path) -> None:
    folder = image_folders.write_captioned(tmp_path / "nines", 2)
    (folder / "00001.txt").unlink()
    done = call("train", "t2i", "--data", folder, f"output={tmp_path / 'run'}")
    assert done.exit_code == 2
    said = " ".join(done.stderr.split())
    assert "00001.png" in said.replace(" ", "") and "Traceback" not in said
    assert not (tmp_path / "run").exists()
