"""``orthotune draw`` on the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result


def test_images_of_the_built_in_pipeline(
    call: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = ("draw", "image-world", "a red seven", "--steps", 1, "--size", "32x32", "-s", "0,4")
    for folder in ("images", "images-2"):
        done = call(*asked)
        assert done.exit_code == 0 and f"2 images in {folder}" in done.stdout, done.output
        assert {path.name for path in (tmp_path / folder).iterdir()} == {
            "0000.png", "0001.png", "images.json", "grid.png",
        }  # fmt: skip
    done = call(*asked, "--out", "images")
    assert done.exit_code == 2 and "--overwrite" in done.stderr
    for wrong in (("--size", "big"), ("--strength", "much"), ("--strength", "0.5"), ("--out", "grid.png")):
        assert call("draw", "image-world", "a seven", *wrong).exit_code == 2
    assert not (tmp_path / "images-3").exists() and not (tmp_path / "grid.png").exists()
