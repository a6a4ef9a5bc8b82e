"""Clips of several frames: where they are read from, how they are cut, training on them, samples, what is refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from orthotune.errors import DataError, OrthotuneError, RecipeError
from orthotune.image.data import clips
from orthotune.image.data.cache import ImageDataset
from orthotune.image.data.captions import Example, read_examples
from orthotune.image.data.clips import frames_of, write_clip
from orthotune.image.data.image_folder import ClipFile, ImageFile, open_images
from orthotune.image.draw import draw, write_images
from orthotune.image.families.registry import family_of
from orthotune.image.families.weighted_error import squared_error
from orthotune.image.held_out import hold_out
from orthotune.image.loop.order import Order
from orthotune.image.loop.samples import read_samples
from orthotune.recipes import subject, text_to_image
from orthotune.recipes.image_job import divided
from orthotune.recipes.load import load_settings
from orthotune.recipes.subject_settings import SubjectSettings
from orthotune.recipes.text_to_image import TextToImageSettings
from tests.support.images import noise, save
from tests.support.transformer_pipelines import tiny_transformer_pipeline


def film(seed: int, frames: int, height: int = 20, width: int = 28) -> np.ndarray:
    """Frames of noise, ``(frames, height, width, 3)``."""
    return np.stack([noise(100 * seed + number, height, width) for number in range(frames)])


def animation(path: Path, frames: np.ndarray, **options: Any) -> Path:
    first, *rest = [Image.fromarray(frame) for frame in frames]
    first.save(path, save_all=True, append_images=rest, **options)
    return path


def numbered(folder: Path, frames: np.ndarray) -> Path:
    """A folder of frames whose names sort by number, not by letter."""
    folder.mkdir()
    for number, frame in enumerate(frames, 1):
        Image.fromarray(frame).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A GIF, a folder of frames, an animated WebP and PNG, and an image, each with its caption."""
    home = tmp_path / "films"
    home.mkdir()
    animation(home / "a.gif", film(1, 6))
    numbered(home / "b.frames", film(2, 11, 40, 20))
    animation(home / "c.webp", film(3, 5), lossless=True)
    animation(home / "d.png", film(4, 7))
    save(home, e=noise(9, 30, 30))
    for name in "abcde":
        (home / f"{name}.txt").write_text(f"a film of {name}")
    return home


def test_clips_are_read_from_animations_and_folders_with_their_captions(folder: Path) -> None:
    said: list[str] = []
    found = read_examples(folder, frames=5, say=said.append)
    assert [(one.image.name, one.caption) for one in found] == [(name, f"a film of {name}") for name in "abcde"]
    clip = {one.image.name: one.image for one in found}
    assert not said and [clip[name].frames for name in "abcde"] == [5, 5, 5, 5, 1]
    assert isinstance(clip["e"], ImageFile) and not isinstance(clip["e"], ClipFile)
    for name, made in (("b", film(2, 11, 40, 20)), ("c", film(3, 5)), ("d", film(4, 7))):
        one: Any = clip[name]
        assert (one.length, one.height, one.width) == made.shape[:3]
        assert (one.window() == made[:5]).all() and (one.pixels() == made[0]).all()
        if len(made) > 5:
            assert (one.window(1) == made[1:6]).all()
    gif: Any = clip["a"]
    assert gif.length == 6 and np.abs(gif.window().astype(int) - film(1, 5)).mean() < 60  # of 256 colours
    assert read_examples(folder, frames=5) == found


def test_with_one_frame_everything_is_as_before(folder: Path) -> None:
    said: list[str] = []
    for path in (folder / "b.frames").iterdir():
        path.with_suffix(".txt").write_text("a frame")
    found = read_examples(folder, say=said.append)
    assert len(found) == 11 + 3 and {one.image.frames for one in found} == {1}
    assert len(said) == 1 and "1 files" in said[0] and "a.gif" in said[0] and "Save them as JPEG or PNG" in said[0]


def test_what_is_no_clip_is_named_and_left_out(folder: Path) -> None:
    animation(folder / "short.gif", film(5, 3))
    (folder / "broken.gif").write_bytes(b"GIF89a" + bytes(20))
    (folder / "texts.frames").mkdir()
    (folder / "texts.frames" / "0001.txt").write_text("no image")
    uneven = numbered(folder / "uneven.frames", film(6, 5))
    Image.fromarray(noise(0, 8, 8)).save(uneven / "6.png")
    for name in ("short", "broken", "texts", "uneven"):
        (folder / f"{name}.txt").write_text(name)
    said: list[str] = []
    assert [one.image.name for one in read_examples(folder, frames=5, say=said.append)] == list("abcde")
    (line,) = said
    assert "4 of 9 images" in line and "short.gif (3 frames, fewer than frames=5)" in line
    assert "broken.gif (no complete image" in line and "texts.frames (a folder without images)" in line
    assert "uneven.frames (frame 6 of 8 x 8 pixels)" in line
    with pytest.raises(DataError, match="4 of 9 that cannot be read"):
        read_examples(folder, frames=5, broken="refuse")
    with pytest.raises(DataError, match=r"1 of 1 that cannot be read.*3 frames, fewer than frames=5"):
        open_images([("short", folder / "short.gif")], "here", frames=5)


def test_pages_and_previews_are_no_frames(tmp_path: Path) -> None:
    animation(tmp_path / "pages.tiff", film(0, 6))
    animation(tmp_path / "phone.jpg", film(1, 6), format="MPO")
    found = read_examples(tmp_path, caption="x", frames=5)
    assert [(one.image.name, one.image.frames) for one in found] == [("pages", 1), ("phone", 1)]


def test_films_need_a_library(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "f.mp4").write_bytes(b"film")
    monkeypatch.setattr(clips, "find_spec", lambda name: None)
    said: list[str] = []
    assert len(read_examples(folder, frames=5, say=said.append)) == 5
    assert said and "f.mp4. Films are read where PyAV is installed: pip install av" in said[0]
    with pytest.raises(DataError, match="pip install av"):
        next(frames_of(folder / "f.mp4", "f"))


def test_films_are_read(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "f.mp4"), "w") as file:
        stream = file.add_stream("mpeg4", rate=16)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        for grey in range(0, 240, 40):
            frame = av.VideoFrame.from_ndarray(np.full((32, 64, 3), grey, np.uint8), format="rgb24")
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    (tmp_path / "f.txt").write_text("it gets lighter")
    (tmp_path / "g.webm").write_bytes(b"no film")
    said: list[str] = []
    (one,) = read_examples(tmp_path, caption="x", frames=5, say=said.append)
    clip: Any = one.image
    assert one.caption == "it gets lighter" and (clip.length, clip.height, clip.width) == (6, 32, 64)
    assert np.abs(clip.window(1).mean(axis=(1, 2, 3)) - [40, 80, 120, 160, 200]).max() < 8
    assert "g.webm (no complete film" in said[0]


def test_films_of_a_phone_are_turned(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    left = np.zeros((32, 64, 3), np.uint8)
    left[:, :32] = 255
    with av.open(str(tmp_path / "f.mp4"), "w") as file:
        stream = file.add_stream("mpeg4", rate=16)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        file.mux(stream.encode(av.VideoFrame.from_ndarray(left, format="rgb24")))
        file.mux(stream.encode())
    content = (tmp_path / "f.mp4").read_bytes()
    upright, turned = ((1 << 16, 0, 0, 0, 1 << 16), (0, 1 << 16, 0, -1 << 16, 0))
    assert content.count(struct.pack(">5i", *upright)) == 2  # of the file and of its track
    at = content.index(b"tkhd") + content[content.index(b"tkhd") :].index(struct.pack(">5i", *upright))
    (tmp_path / "f.mp4").write_bytes(content[:at] + struct.pack(">5i", *turned) + content[at + 20 :])
    (frame,) = frames_of(tmp_path / "f.mp4", "f")
    assert frame.shape == (64, 32, 3) and frame[:28].min() > 200 and frame[36:].max() < 50  # clockwise: left is above


def test_a_written_clip_is_read_again_without_loss(tmp_path: Path) -> None:
    path = write_clip(film(0, 5), tmp_path / "00", 16)
    assert (np.stack(list(frames_of(path, "clip"))) == film(0, 5)).all()


@pytest.fixture(scope="module")
def wan() -> Any:
    return family_of(tiny_transformer_pipeline("wan"))


def data_of(found: list[Example], wan: Any, **options: Any) -> ImageDataset:
    return ImageDataset(found, wan, 32, say=lambda _: None, **options)


def test_frames_of_a_clip_are_cut_alike_and_batches_hold_one_number(folder: Path, wan: Any, tmp_path: Path) -> None:
    found = read_examples(folder, frames=5)
    data = data_of(found, wan, crop="random", cache_dir=tmp_path / "kept")
    assert [data.bucket(index) for index in range(5)] == [(32, 32, 5)] * 4 + [(32, 32)]
    order = Order([data.bucket(index) for index in range(5)], 2, 0)
    shapes = {data.batch(order.indices(step)).latents.shape[2] for step in range(order.per_epoch)}
    assert shapes == {1, 2}
    # encoded as the frames that Pillow cuts one by one, and as the image alone
    how = data._encoded(1)[2]
    cut = [
        Image.fromarray(frame).resize(how.resized[::-1], Image.Resampling.LANCZOS)
        .crop((how.left, how.top, how.left + 32, how.top + 32)) for frame in film(2, 5, 40, 20)
    ]  # fmt: skip
    shown = torch.from_numpy(np.stack([np.array(one) for one in cut])).movedim(-1, 0)[None]
    mean, std = (getattr(wan._posterior(shown.float() / 127.5 - 1), part) for part in ("mean", "std"))
    distance = (data.batch([1]).latents - wan._scaled(mean)).abs() / (std / wan._latent_statistics(std)[1])
    assert distance.max() < 6  # noise of the VAE, in standard deviations
    again = data_of(found, wan, crop="random", cache_dir=tmp_path / "kept")
    wan_called = wan.encode_images
    try:
        wan.encode_images = None  # all is kept
        assert torch.equal(again.batch([0, 1, 2]).latents, data.batch([0, 1, 2]).latents)
        train, held = hold_out(again, 1, 0)
        assert len(train) == 4 and len(held["new"]) == 1
    finally:
        wan.encode_images = wan_called
    one, nine = (data_of(read_examples(folder, frames=frames, say=lambda _: None), wan) for frames in (5, 9))
    assert one.batch([1]).latents.shape[2] == 2 and nine.batch([0]).latents.shape[2] == 3


def test_without_a_cache_every_epoch_sees_other_frames(folder: Path, wan: Any) -> None:
    found = read_examples(folder, frames=5)
    varied, kept = data_of(found, wan, cache=False), data_of(found, wan)
    starts = [varied._window(found[1].image, 1 + epoch * 5)[0] for epoch in range(30)]
    assert set(starts) == set(range(7)) and starts == [varied._window(found[1].image, 1 + 5 * n)[0] for n in range(30)]
    assert {kept._window(found[1].image, 1 + epoch * 5)[0] for epoch in range(30)} == {0}
    assert not varied._window(found[4].image, 4)
    assert torch.equal(varied.batch([1, 6]).latents, varied.batch([1, 6]).latents)


def test_a_subject_is_taught_from_clips_and_a_mask_counts_for_all_frames(folder: Path, wan: Any) -> None:
    mask = np.zeros((20, 28, 3), dtype=np.uint8)
    mask[:, :14] = 255
    save(folder, **{"a.mask": mask})
    settings = SubjectSettings(
        model="m", instance_images=str(folder), instance_prompt="a sks robot", frames=5, resolution=32,
        loss_masks="files", caption_dropout=0,
    )  # fmt: skip
    data = subject.job(settings, lambda _: None).data(wan, None)
    assert [data.bucket(index) for index in range(len(data))] == [(32, 32, 5)] * 4 + [(32, 32)]
    batch = data.batch([0])
    assert batch.captions == ["a film of a"] and batch.latents.shape == (1, 4, 2, 8, 8)
    assert batch.mask is not None and batch.mask.shape == (1, 1, 32, 32)
    guess = torch.zeros_like(batch.latents)
    right = guess.clone()
    right[..., 6:] = 1  # where nothing counts, in both latent frames
    assert squared_error(guess, right, batch.mask).max() == 0 < squared_error(guess, right).min()
    assert divided(settings, data)[0] is data
    stills = data_of(read_examples(folder, frames=5)[4:], wan)
    with pytest.raises(DataError, match=r"clips for frames=5. Found: 1 images"):
        divided(settings, stills)


def test_a_run_on_clips_draws_clips(folder: Path, wan: Any, tmp_path: Path) -> None:
    model = tmp_path / "wan"
    wan.pipeline.save_pretrained(model)
    words = [
        f"model={model}", f"data={folder}", "frames=5", "resolution=32", "steps=2", "batch_size=1", "sample_steps=1",
        "block_size=4", "held_out=1", "sample_prompts=[a film]", "sample_seeds=[0, 1]", "sample_every=2",
    ]  # fmt: skip
    settings = load_settings(TextToImageSettings, None, [*words, f"output={tmp_path / 'run'}"])
    plan = "\n".join(text_to_image.plan(settings))
    assert "clips of 5 frames of 32 x 32" in plan and "held out    1 images" in plan
    record = text_to_image.run(settings, lambda _: None, bar=False)
    assert record.steps == 2 and record.settings["frames"] == 5
    entries = read_samples(tmp_path / "run")
    assert [(entry["step"], entry["seed"], entry["frames"]) for entry in entries] == [
        (0, 0, 5), (0, 1, 5), (2, 0, 5), (2, 1, 5)
    ]  # fmt: skip
    for entry in entries:
        frames = list(frames_of(tmp_path / "run" / entry["clip"], "sample"))
        assert len(frames) == 5 and frames[0].shape == (32, 32, 3)
        assert (np.array(Image.open(tmp_path / "run" / entry["file"])) == frames[0]).all()
    # the run is drawn from as its samples were, the same frames; or with another number of them
    (one,) = draw(tmp_path / "run", "a film", steps=1, dtype=torch.float32)
    last = np.stack(list(frames_of(tmp_path / "run" / entries[2]["clip"], "sample")))
    assert np.abs(one.image.movedim(0, -1).numpy().astype(int) - last).max() <= 1
    found = draw(tmp_path / "run", "a film", steps=1, frames=9, seeds=[0, 1])
    write_images(found, tmp_path / "drawn")
    listed = json.loads((tmp_path / "drawn" / "images.json").read_text())
    assert [one["frames"] for one in listed] == [9, 9]
    assert len(list(frames_of(tmp_path / "drawn" / listed[1]["clip"], "drawn"))) == 9
    (still,) = draw(tmp_path / "run", "a film", steps=1, frames=1)
    assert still.image.ndim == 3 and "frames" not in still.facts
    with pytest.raises(RecipeError, match=r"frames=4 for wan.*Take 1 or 5"):
        draw(tmp_path / "run", "a film", frames=4)
    with pytest.raises(RecipeError, match=r"frames=6 for wan.*1 \+ a multiple of 4.*Take 5 or 9"):
        text_to_image.plan(load_settings(TextToImageSettings, None, [*words, "frames=6"]))


def test_settings_that_contradict_clips_are_refused() -> None:
    said = {"model": "m", "instance_images": "x", "instance_prompt": "a sks cat"}
    with pytest.raises(ValueError, match="class images are images"):
        SubjectSettings(**said, frames=5, class_prompt="a cat")
    with pytest.raises(ValueError, match="loss_masks=alpha reads the transparency"):
        SubjectSettings(**said, frames=5, loss_masks="alpha")
    assert (
        "frames" not in SubjectSettings(**said).record() and SubjectSettings(**said, frames=5).record()["frames"] == 5
    )
    with pytest.raises(OrthotuneError, match="frames=5 for stable-diffusion. Found: a model of images"):
        text_to_image.plan(TextToImageSettings(frames=5))
