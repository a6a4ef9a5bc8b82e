"""A pipeline with control pictures: saved, loaded, merged, always the same pictures; of every family."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from orthotune.errors import AdapterFileError, ConfigError, DataError, OutputError
from orthotune.image.adapter.adapters import AdapterSettings, add_adapter, trained
from orthotune.image.adapter.saved_adapter import save_adapter
from orthotune.image.control.hint_encoder import CONFIG, WEIGHTS, HintEncoder, HintShape
from orthotune.image.control.hinted import generate_hinted
from orthotune.image.control.pipeline import ControlPipeline
from orthotune.image.data.batch import Batch
from orthotune.image.families.family import LossOptions
from orthotune.image.families.pipeline_family import PipelineFamily
from orthotune.image.families.registry import open_family
from orthotune.image.loop.trainee import Trainee
from orthotune.worlds import image
from tests.support.tiny_pipelines import FAMILIES, save_tiny

PROMPTS = ["a red three", "a blue one"]
#: Another order of the same float32 sums, over some layers and steps: on latents near 1, and on pictures of 0..1 that
#: are rounded to 1/255.
NEAR, SAME = 1e-4, 1.01 / 255
#: What a change of the model does to the latents is at least ten times as much.
FAR = 1e-3


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Base and adapter folder of each family, trained for three steps with a hint encoder."""

    @cache
    def make(kind: str, method: str = "oft") -> tuple[Path, Path]:
        home = tmp_path_factory.mktemp(kind)
        base = save_tiny(kind, home / "base")
        family = open_family(base)
        add_adapter(
            family,
            AdapterSettings(
                method, block_size=None if method == "lora" else 2, lora_rank=2 if method == "lora" else None
            ),
        )
        torch.manual_seed(0)
        encoder = HintEncoder(HintShape.of(family, "canny"))
        _train(family, encoder)
        save_adapter(family, home / "adapter")
        encoder.save(home / "adapter")
        return base, home / "adapter"

    return make


def _train(family: PipelineFamily, encoder: HintEncoder, steps: int = 3) -> None:
    trainee, generator = Trainee(family, encoder), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(trainee.learning().values(), lr=0.05)
    before = {name: value.detach().clone() for name, value in trainee.learning().items()}
    pictures = torch.randint(256, (2, 3, 16, 24), generator=generator, dtype=torch.uint8)
    batch = Batch(
        family.encode_images(pictures, generator), PROMPTS, family.encode_captions(PROMPTS), torch.ones(2), _hints()
    )
    for _ in range(steps):
        loss = trainee(batch, generator, LossOptions()).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(not torch.equal(value, before[name]) for name, value in trainee.learning().items())


def _hints(count: int = 2) -> Tensor:
    return (torch.rand(count, 3, 16, 24, generator=torch.Generator().manual_seed(3)) > 0.5).float()


def _drawn(pipeline: ControlPipeline, **options: Any) -> Tensor:
    said: dict[str, Any] = {"seed": 5, "num_inference_steps": 2, "output_type": "latent", "control_image": _hints()}
    found: Tensor = pipeline(PROMPTS, **said | options).images
    return found


@pytest.mark.parametrize("kind", FAMILIES)
def test_saved_loaded_merged_and_saved_whole_it_draws_the_same(kind: str, folders: Any, tmp_path: Path) -> None:
    base, adapter = folders(kind)
    pipeline = ControlPipeline.from_pretrained(base, adapter)
    assert pipeline.signal == "canny"
    pictures = _drawn(pipeline)
    assert _drawn(pipeline, output_type="pt").shape == (2, 3, 16, 24)
    assert torch.equal(_drawn(pipeline), pictures)
    assert (_drawn(pipeline, control_image=_hints().flip(0)) - pictures).abs().max() > FAR
    with pytest.raises(ConfigError, match="not merged"):
        pipeline.save_pretrained(tmp_path / "whole")
    assert not (tmp_path / "whole").exists()
    torch.testing.assert_close(_drawn(pipeline.merge()), pictures, atol=NEAR, rtol=0)
    pipeline.save_pretrained(tmp_path / "whole")
    whole = ControlPipeline.from_pretrained(tmp_path / "whole")
    assert torch.equal(_drawn(whole), _drawn(pipeline))
    assert not trained(whole.family)


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_adapter_and_the_encoder_both_matter(kind: str, folders: Any) -> None:
    base, adapter = folders(kind)
    pictures = _drawn(ControlPipeline.from_pretrained(base, adapter))
    unturned = ControlPipeline.from_pretrained(base, hint_encoder=adapter)
    assert (_drawn(unturned) - pictures).abs().max() > FAR
    blind = ControlPipeline.from_pretrained(base, adapter)
    nn.init.zeros_(blind.hint_encoder.head.weight)
    nn.init.zeros_(blind.hint_encoder.head.bias)
    assert (_drawn(blind) - pictures).abs().max() > FAR


@pytest.mark.parametrize("kind", ["sd15", "flux-dev"])
def test_in_half_precision_it_draws_nearly_the_same(kind: str, folders: Any) -> None:
    exact, half = (
        ControlPipeline.from_pretrained(*folders(kind), dtype=dtype) for dtype in (torch.float32, torch.bfloat16)
    )
    # bfloat16 keeps 8 bits of a number, and each of some ten layers rounds
    torch.testing.assert_close(_drawn(half).float(), _drawn(exact), atol=0.2, rtol=0)


def test_it_draws_what_the_trained_family_drew(folders: Any) -> None:
    base, adapter = folders("sd15")
    pipeline = ControlPipeline.from_pretrained(base, adapter)
    pictures = generate_hinted(pipeline.family, pipeline.hint_encoder, PROMPTS, _hints(), [5, 6], steps=2, batch_size=1)
    torch.testing.assert_close(_drawn(pipeline, output_type="pt"), pictures / 255, atol=SAME, rtol=0)


def test_a_lora_and_its_encoder_are_loaded(folders: Any) -> None:
    base, adapter = folders("sd15", "lora")
    pipeline = ControlPipeline.from_pretrained(base, adapter)
    pictures = _drawn(pipeline)
    assert (_drawn(ControlPipeline.from_pretrained(base, hint_encoder=adapter)) - pictures).abs().max() > FAR
    torch.testing.assert_close(_drawn(pipeline.merge()), pictures, atol=NEAR, rtol=0)


@pytest.fixture(scope="module")
def world() -> ControlPipeline:
    torch.manual_seed(0)
    family = open_family(image.PIPELINE)
    encoder = HintEncoder(HintShape.of(family, "segm"))
    nn.init.normal_(encoder.head.weight, std=3.0)
    return ControlPipeline(family, encoder)


def _square(side: int = 32) -> Image.Image:
    pixels = np.zeros((side, side, 3), dtype=np.uint8)
    pixels[8:24, 10:20] = 255
    return Image.fromarray(pixels)


def test_a_picture_depends_on_its_seed_alone(world: ControlPipeline) -> None:
    options: dict[str, Any] = {"num_inference_steps": 2, "output_type": "pt"}
    first = world("a red three", _square(), seed=7, **options).images
    assert torch.equal(world("a red three", _square(), seed=7, **options).images, first)
    several = world(["a red three", "a blue one"], _square(), seed=[7, 3], **options).images
    torch.testing.assert_close(several[:1], first, atol=SAME, rtol=0)
    assert not torch.equal(world("a red three", _square(), seed=8, **options).images, first)


def test_pictures_of_one_pair_stand_beside_each_other(world: ControlPipeline) -> None:
    options: dict[str, Any] = {"num_inference_steps": 2, "output_type": "pt"}
    other = Image.fromarray(255 - np.asarray(_square()))
    drawn = world(PROMPTS, [_square(), other], seed=1, num_images_per_prompt=2, **options).images
    for number, (prompt, control) in enumerate([(PROMPTS[0], _square())] * 2 + [(PROMPTS[1], other)] * 2):
        alone = world(prompt, control, seed=1 + number, **options).images
        torch.testing.assert_close(drawn[number : number + 1], alone, atol=SAME, rtol=0)


def test_pillow_arrays_files_and_tensors_are_the_same_picture(world: ControlPipeline, tmp_path: Path) -> None:
    picture = _square()
    picture.save(tmp_path / "square.png")
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    forms = [picture, np.asarray(picture), tmp_path / "square.png", str(tmp_path / "square.png"), pixels, pixels / 255,
             pixels[None], [picture]]  # fmt: skip
    drawn = [world("a red three", form, seed=0, num_inference_steps=1, output_type="np").images for form in forms]
    assert all(np.array_equal(one, drawn[0]) for one in drawn)


def test_the_output_is_a_picture_of_the_control_s_size(world: ControlPipeline) -> None:
    wide = Image.new("RGB", (48, 32))
    drawn = world("a red three", wide, num_inference_steps=1).images
    assert [one.size for one in drawn] == [(48, 32)]
    assert world("a red three", _square(), num_inference_steps=1, output_type="latent").images.shape == (1, 4, 8, 8)


@pytest.mark.parametrize(
    ("control", "options", "words"),
    [
        (_square(30), {}, "30 x 30 pixels.*multiples of 8.*resize=True"),
        (_square(40), {"height": 32, "width": 32}, "40 x 40 pixels.*32 x 32 pixels"),
        ([_square(), _square(40)], {}, "control image 1.*40 x 40"),
        ([], {}, "none"),
        ([_square()] * 3, {}, "3 with 2 prompts"),
        (torch.zeros(1, 32, 32), {}, r"\(1, 32, 32\)"),
        (torch.full((3, 32, 32), 3.0), {}, "floats of 0..1"),
        (torch.full((3, 32, 32), float("nan")), {}, "floats of 0..1"),
        (np.zeros((32, 32)), {}, "float64"),
        ("missing.png", {}, "missing.png.*no such file"),
        (7, {}, "Found: int"),
    ],
    ids=["divisor", "size", "unlike", "none", "count", "channels", "range", "nan", "float64", "missing", "number"],
)
def test_a_wrong_control_picture_is_told(world: ControlPipeline, control: Any, options: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        world(PROMPTS, control, num_inference_steps=1, **options)


def test_another_size_is_changed_when_asked(world: ControlPipeline) -> None:
    assert world("a red three", _square(30), resize=True, num_inference_steps=1).images[0].size == (32, 32)
    drawn = world("a red three", _square(50), resize=True, height=32, width=40, num_inference_steps=1).images[0]
    assert drawn.size == (40, 32)


@pytest.mark.parametrize(
    "options",
    [{"seed": [1, 2]}, {"seed": 1, "generator": torch.Generator()}, {"height": 32}, {"output_type": "jpeg"}],
    ids=lambda options: "-".join(options),
)
def test_options_that_contradict_are_told(world: ControlPipeline, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        world("a red three", _square(), num_inference_steps=1, **options)


def test_folders_that_do_not_fit_are_refused(folders: Any, tmp_path: Path) -> None:
    base, adapter = folders("sd15")
    with pytest.raises(AdapterFileError, match="without a hint encoder.*second argument"):
        ControlPipeline.from_pretrained(base)
    with pytest.raises(AdapterFileError, match="a complete model.*alone"):
        ControlPipeline.from_pretrained(base, base)
    with pytest.raises(AdapterFileError, match="made for sd3.*pos_embed.proj"):
        ControlPipeline.from_pretrained(base, folders("sd3")[1])
    for name in (CONFIG, WEIGHTS):
        (tmp_path / name).write_bytes((adapter / name).read_bytes())
    with pytest.raises(AdapterFileError, match=str(tmp_path)):
        ControlPipeline.from_pretrained(base, tmp_path)  # an encoder without its adapter


def test_a_whole_model_is_not_written_over_something(world: ControlPipeline, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="existing files"):
        world.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_the_saved_description_is_plain(folders: Any) -> None:
    said = json.loads((folders("flux-dev")[1] / CONFIG).read_text())
    # a VAE of factor 2 under patches of 2 x 2; the transformer is 16 wide
    assert said == {"family": "flux", "entry": "x_embedder", "channels": 16, "cell": 4, "signal": "canny"}
