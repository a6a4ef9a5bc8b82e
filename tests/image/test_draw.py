"""Images that an adapter generates: strengths, the base beside it, files that say how they were made."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import orthotune
from orthotune.errors import ConfigError, OrthotuneError, OutputError
from orthotune.files.json_file import read_json, write_json
from orthotune.image.adapter.adapters import AdapterSettings, add_adapter, trained
from orthotune.image.adapter.saved_adapter import save_adapter
from orthotune.image.draw import write_images
from orthotune.image.families.registry import open_family
from orthotune.image.opened_pipeline import open_pipeline
from orthotune.operations.rewind import rewind

#: of one family each: names of one component, and of several
SAVED = {
    "rotations": ("sd15", {"method": "oft", "block_size": 4}),
    "with text encoder": ("sd15", {"method": "oft", "block_size": 4, "text_encoders": True}),
    "lora": ("sd15", {"method": "lora", "lora_rank": 2}),
}


def adapter(kind: str, folder: Path, base: Path, **fields: Any) -> Path:
    """An adapter that changes what the pipeline generates."""
    family = open_family(base)
    add_adapter(family, AdapterSettings(**fields))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in trained(family).values():
            parameter.normal_(std=0.3)
    (folder / kind).mkdir()
    save_adapter(family, folder / kind)
    return folder / kind


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[..., Path]) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("drawing")
    return {name: adapter(name, home, tiny(kind), **fields) for name, (kind, fields) in SAVED.items()}


def _images(found: list[Any]) -> torch.Tensor:
    return torch.stack([one.image for one in found]).int()


@pytest.mark.parametrize("name", SAVED)
def test_strength_0_is_the_base_and_1_the_adapter(name: str, saved: dict[str, Path], tiny: Callable[..., Path]) -> None:
    options: dict[str, Any] = {"steps": 2, "seeds": [3]}
    base = _images(orthotune.draw(tiny(SAVED[name][0]), "a red digit", **options))
    found = orthotune.draw(saved[name], "a red digit", strengths=[0, 0.5, 1], both=True, **options)
    assert [(one.seed, one.strength) for one in found] == [(s, t) for s in (3,) for t in (None, 0.0, 0.5, 1.0)]
    without, zero, half, full = (_images(found[place::4]) for place in range(4))
    assert torch.equal(without, base)
    # R^0 is the identity up to the rounding of its eigenvectors: the last of 255 steps may differ.
    assert (zero - base).abs().max() <= 1
    assert all((one - other).abs().max() > 2 for one, other in ((full, base), (half, full), (half, base)))


def test_a_strength_is_that_of_the_adapter_that_rewinding_writes(saved: dict[str, Path], tmp_path: Path) -> None:
    rewound = rewind(saved["rotations"], 0.5, tmp_path / "half").out
    base = read_json(saved["rotations"] / "adapter_config.json")["base_model_name_or_path"]
    options: dict[str, Any] = {"steps": 2, "base": base}
    drawn, written = (orthotune.draw(saved["rotations"], "a digit", strengths=0.5, **options),
                      orthotune.draw(rewound, "a digit", **options))  # fmt: skip
    assert (_images(drawn) - _images(written)).abs().max() <= 1  # a logarithm and its exponential in float32


def test_files_say_how_they_were_made(saved: dict[str, Path], tmp_path: Path) -> None:
    found = orthotune.draw(saved["rotations"], ["a red digit", "ein rötlicher"], strengths=[0.25, 1], steps=2, seeds=7)
    out = write_images(found, tmp_path / "out")
    entries = json.loads((out / "images.json").read_text(encoding="utf-8"))
    assert [entry["file"] for entry in entries] == [f"{n:04}.png" for n in range(4)] and (out / "grid.png").is_file()
    with Image.open(out / "0003.png") as image:
        recorded = json.loads(image.info["orthotune"])
        assert image.info["parameters"].startswith("ein rötlicher\nSteps: 2, CFG scale: ")
    assert recorded == {key: value for key, value in entries[3].items() if key != "file"}
    assert (recorded["prompt"], recorded["seed"], recorded["strength"]) == ("ein rötlicher", 7, 1.0)
    assert len(recorded["sha256"]["adapter_model.safetensors"]) == 64
    # All that is recorded generates the image again.
    again = orthotune.draw(
        recorded["adapter"], recorded["prompt"], strengths=recorded["strength"], seeds=recorded["seed"],
        steps=recorded["steps"], guidance=recorded["guidance"], height=recorded["height"], width=recorded["width"],
    )  # fmt: skip
    assert torch.equal(again[0].image, found[3].image)
    with pytest.raises(OutputError, match="not empty"):
        write_images(found, out)


def test_a_run_gives_its_base_and_how_its_samples_were_made(saved: dict[str, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(saved["rotations"], run / "adapter")
    base = read_json(run / "adapter" / "adapter_config.json")["base_model_name_or_path"]
    settings = {"model": base, "sample_steps": 3, "guidance": 2.0, "resolution": 24}
    write_json(run / "settings.json", {**settings, "recipe": "subject"})
    found = orthotune.draw(run, "a digit")[0]
    assert (found.facts["steps"], found.facts["guidance"]) == (3, 2.0) and found.image.shape == (3, 24, 24)
    write_json(run / "settings.json", {"recipe": "sft", "model": "text-world"})
    with pytest.raises(OrthotuneError, match="a run of the recipe sft.*orthotune generate"):
        open_pipeline(run)


def test_what_has_no_adapter_or_strength_is_refused(saved: dict[str, Path], tmp_path: Path) -> None:
    config = read_json(saved["rotations"] / "adapter_config.json")
    world = open_pipeline(config["base_model_name_or_path"])
    for fields in ({"both": True}, {"strengths": 0.5}):
        with pytest.raises(ConfigError, match="a model without an adapter"):
            orthotune.draw(world, "a digit", **fields)
    opened = open_pipeline(saved["rotations"])
    for prompts, fields, message in (
        (" ", {}, "an empty text"), ("a", {"strengths": float("nan")}, "a finite number"), ("a", {"seeds": []}, "empty")
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            orthotune.draw(opened, prompts, **fields)
    shutil.copytree(saved["rotations"], tmp_path / "lost")
    write_json(tmp_path / "lost" / "adapter_config.json", {**config, "base_model_name_or_path": None})
    with pytest.raises(ConfigError, match="does not record its base.*--base"):
        open_pipeline(tmp_path / "lost")
