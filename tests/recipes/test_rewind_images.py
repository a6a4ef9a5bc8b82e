"""Rewinding of finished image models: what is chosen, what is written, what is refused."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from typer.testing import CliRunner

from orthotune.cli.main import app
from orthotune.errors import DataError, RecipeError
from orthotune.image.adapter.saved_adapter import load_adapter
from orthotune.image.control.hint_encoder import load_hint_encoder
from orthotune.image.families.registry import open_family
from orthotune.image.loop.options import LoopOptions
from orthotune.image.loop.trainee import Trainee
from orthotune.image.rewinding import ImageRewinding, batches_of, domains_of
from orthotune.recipes import control, rewind_images, subject
from orthotune.recipes.control import ControlSettings
from orthotune.recipes.rewind_images import ImageRewindSettings
from orthotune.recipes.subject_settings import SubjectSettings
from orthotune.worlds.image_folders import write_control, write_subject
from tests.support.tiny_pipelines import save_tiny

QUIET: dict[str, Any] = {"say": lambda line: None}
FEW: dict[str, Any] = {"images": 3, "draws": 4, "steps": 2, "step_images": 2}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("sd15", tmp_path_factory.mktemp("models") / "sd15")


def _pictures(home: Path) -> Path:
    folder = home / "nines"
    return folder if folder.exists() else write_subject(folder)


def _settings(tiny: Path, home: Path, method: str, **more: Any) -> SubjectSettings:
    rates = {"oft": 0.05, "lora": 0.05, "full": 0.003}
    usual = {
        "model": str(tiny), "instance_images": str(_pictures(home)), "instance_prompt": "a sks digit",
        "class_prompt": "a digit", "class_count": 3, "class_steps": 2, "batch_size": 2, "steps": 3, "save_every": 3,
        "sample_prompts": ["a red sks digit"], "sample_steps": 2, "output": home / method, "method": method,
        "learning_rate": rates[method],
    }  # fmt: skip
    return SubjectSettings(**usual | ({} if method == "full" else {"block_size": 4}) | more)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> dict[str, Path]:
    """A finished run of each way of training: adapters on two networks, and weights trained in full."""
    home = tmp_path_factory.mktemp("runs")
    for method, more in {"oft": {"train_text_encoder": True}, "lora": {}, "full": {}}.items():
        subject.run(_settings(tiny, home, method, **more), lambda _: None, bar=False)
    return {method: home / method for method in ("oft", "lora", "full")}


@pytest.mark.parametrize("method", ["oft", "lora", "full"])
def test_what_is_written_is_what_was_measured(runs: dict[str, Path], method: str, tmp_path: Path, tiny: Path) -> None:
    out = tmp_path / "out"
    asked = ImageRewindSettings(run=runs[method], by="projection", output=out, **FEW)
    found = rewind_images.run(asked, **QUIET)
    assert len(found.strengths) > 1 and all(0 < t <= 1.3 for t in found.strengths.values())
    assert json.loads((out / "rewind.json").read_text()) == found.model_dump(mode="json")
    assert (out / "rewind.png").is_file() and found.draws["new"] == 3 * 4

    trained, job = rewind_images._finished(runs[method])
    if method == "full":
        family: Any = open_family(out / "model", torch.float32)
    else:
        family = open_family(tiny)
        load_adapter(family, out / "adapter")
    base: Any = open_family(tiny)
    new, old = domains_of(job.data(base, runs[method]))
    assert old is not None
    batches = {"new": batches_of(new, 2, 3, torch.device("cpu")), "old": batches_of(old, 2, 3, torch.device("cpu"))}
    half = [10_000 + number for number in range(2, 4)]
    loss = partial(ImageRewinding, batches=batches, draws=half, options=LoopOptions.of(trained).loss)
    means = _means(loss, Trainee(family).eval())
    before = _means(loss, Trainee(base).eval())
    # float32 losses of a network whose rotations were written and read again.
    assert found.rows["chosen"]["gain"] == pytest.approx(before[0] - means[0], abs=2e-6)
    assert found.rows["chosen"]["forgetting"] == pytest.approx(means[1] - before[1], abs=2e-6)
    assert found.rows["chosen"] != found.rows["as trained"]


def _means(loss: Any, trainee: Trainee) -> tuple[float, float]:
    class AsTheyAre:
        names = ()

        def set(self, strengths: Any) -> None: ...

    return loss(trainee, AsTheyAre()).base.means


def test_strength_zero_is_the_base_and_one_the_adapter(runs: dict[str, Path], tiny: Path) -> None:
    trained, job = rewind_images._finished(runs["oft"])
    trainee, layers, _ = rewind_images._loaded(runs["oft"], trained, job)
    base: Any = open_family(tiny)
    new, _ = domains_of(job.data(base, runs["oft"]))
    batches = {"new": batches_of(new, 2, 3, torch.device("cpu")), "old": batches_of(new, 2, 3, torch.device("cpu"))}
    loss = partial(ImageRewinding, batches=batches, draws=[1, 2], options=LoopOptions.of(trained).loss)
    assert loss(trainee, layers).base.means == _means(loss, Trainee(base).eval())
    layers.set(dict.fromkeys(layers.names, 1.0))
    with_adapter: Any = open_family(tiny)
    load_adapter(with_adapter, runs["oft"] / "adapter")
    assert _means(loss, trainee) == _means(loss, Trainee(with_adapter).eval())
    # The rows are rows of images: each once, the same at every call.
    assert len(loss(trainee, layers).losses("new")) == 3


def test_the_encoder_of_control_images_is_kept_as_it_is(tiny: Path, tmp_path: Path) -> None:
    settings = ControlSettings(
        model=str(tiny), data=str(write_control(tmp_path / "pairs", "segm", count=3)), signal="segm", steps=2,
        batch_size=2, learning_rate=0.02, hint_learning_rate=0.05, sample_steps=2, sample_seeds=[3], warmup=0,
        sample_prompts=["a red one"], sample_every=9, resolution=16, block_size=2, output=tmp_path / "run",
    )  # fmt: skip
    control.run(settings, lambda _: None, bar=False)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a house\na tree\n")
    found = rewind_images.run(ImageRewindSettings(run=tmp_path / "run", old=prompts, **FEW), **QUIET)
    assert found.strengths.keys() == {"all"} and found.draws["old"] == 2 * 4
    kept, written = (load_hint_encoder(tmp_path / "run" / folder / "adapter") for folder in ("", "rewound"))
    assert all(torch.equal(one, written.state_dict()[name]) for name, one in kept.state_dict().items())


def test_a_run_rewinds_at_its_end(tiny: Path, tmp_path: Path) -> None:
    said: list[str] = []
    settings = _settings(tiny, tmp_path, "oft", rewind="auto", steps=1)
    record = subject.run(settings, said.append, bar=False)
    assert record.rewound is not None and record.rewound["by"] == "one" and record.artifacts["rewound"] == "rewound"
    assert any("as trained" in line for line in said)
    assert subject.run(settings.model_copy(update={"resume": "auto"}), said.append, bar=False) == record


def test_what_is_refused(runs: dict[str, Path], tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no finished run of an image model"):
        rewind_images.run(ImageRewindSettings(run=tmp_path), **QUIET)
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(DataError, match="only empty lines"):
        rewind_images.run(ImageRewindSettings(run=runs["oft"], old=tmp_path / "empty.txt"), **QUIET)
    assert not (runs["oft"] / "rewound").exists()
    with pytest.raises(ValidationError, match="rewind_prompts has no meaning"):
        _settings(tiny, tmp_path, "oft", rewind_prompts="prompts.txt")
    with pytest.raises(ValidationError, match="no prompts for these"):
        _settings(tiny, tmp_path, "oft", rewind="auto", class_prompt=None)
    result = CliRunner().invoke(app, ["rewind", str(runs["oft"]), "tokens=4"])
    assert result.exit_code == 2 and "tokens" in result.output
