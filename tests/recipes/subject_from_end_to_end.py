"""One subject from the first command to a file for ComfyUI, on the built-in image model, by the words of the documents.

Some minutes of processes, `make test-subject`; `make test` does not collect this file.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from orthotune.files.json_file import read_json

ORTHOTUNE = (sys.executable, "-m", "orthotune")
STEPS = 24


def call(folder: Path, *words: str, status: int = 0) -> str:
    """What a command prints; the folder is the working directory."""
    done = subprocess.run([*ORTHOTUNE, *words], cwd=folder, capture_output=True, text=True, timeout=900)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def to_tensor(found: Image.Image) -> torch.Tensor:
    return torch.frombuffer(bytearray(found.tobytes()), dtype=torch.uint8).int()


@pytest.mark.timeout(1800)  # a dozen processes, each of which loads libraries and a model
def test_a_subject_is_trained_stopped_resumed_rewound_and_converted(tmp_path: Path) -> None:
    train = ["train", "subject", "for=comfyui", f"steps={STEPS}", "save_every=4", "sample_every=100", "sample_steps=2",
             "class_images=class", "output=runs/nine"]  # fmt: skip
    assert "memory" in call(tmp_path, *train, "--dry-run") and not (tmp_path / "runs").exists()

    with subprocess.Popen(
        [*ORTHOTUNE, *train], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as started:
        checkpoints, end = tmp_path / "runs/nine/checkpoints", time.monotonic() + 600
        while not list(checkpoints.glob("checkpoint-*")):
            assert started.poll() is None and time.monotonic() < end
            time.sleep(0.02)
        started.send_signal(signal.SIGINT)
        said, _ = started.communicate(timeout=300)
    assert started.returncode == 128 + signal.SIGINT and "resume=auto output=" in said
    stopped = read_json(tmp_path / "runs/nine/stopped.json")
    assert 4 <= stopped["steps"] < STEPS
    assert "resume=auto" in call(tmp_path, "report", "runs/nine") + (tmp_path / "runs/nine/report.html").read_text()

    assert "orthotune rewind" in call(tmp_path, *train, "resume=auto")
    record = read_json(tmp_path / "runs/nine/run.json")
    assert record["steps"] == STEPS and record["settings"]["rotation"]["side"] == "out"

    call(tmp_path, "rewind", "runs/nine", "images=4", "draws=4", "steps=4", "--out", "rewound")
    assert 0 <= min(read_json(tmp_path / "rewound/rewind.json")["strengths"].values()) <= 1

    for source, file in (("runs/nine", "nine.safetensors"), ("rewound", "rewound.safetensors")):
        told = call(tmp_path, "convert", source, file, "--base", "image-world", "--to", "comfyui")
        assert "lossless" in told and "77 of 77 layers" in told
        assert "comfyui" in call(tmp_path, "identify", file).lower()
    call(tmp_path, "convert", "runs/nine", "nine.safetensors", "--base", "image-world", "--to", "comfyui", status=2)

    # The file is the adapter: the same images, and not those of the base.
    drawn = {}
    for name, source in {
        "run": ["runs/nine"], "file": ["nine.safetensors", "--base", "image-world"], "base": ["image-world"]
    }.items():  # fmt: skip
        # A run's own guidance is that of its samples, a file has none.
        call(tmp_path, "draw", *source, "a sks digit", "--steps", "4", "--guidance", "3", "--out", name)
        drawn[name] = to_tensor(Image.open(tmp_path / name / "0000.png"))
    assert (drawn["run"] - drawn["file"]).abs().max() <= 1, (
        "a level of 255 at most, where a sum is rounded the other way"
    )
    assert (drawn["run"] - drawn["base"]).abs().max() > 1
