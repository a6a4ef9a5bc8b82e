"""Encoded pictures: functions of index and seed, encoded once, and not found again when their source has changed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from orthotune.errors import ConfigError, DataError
from orthotune.image.control.conditions.registry import condition
from orthotune.image.data.cache import ImageDataset
from orthotune.image.data.captions import Example
from orthotune.image.data.image_folder import in_memory_image, read_folder
from orthotune.image.families.family import Family
from orthotune.image.families.registry import family_of
from orthotune.image.loop.order import Order
from tests.support.images import noise
from tests.support.tiny_pipelines import tiny_pipeline

CAPTIONS = ["a red digit", "", "a photo of a blue digit", "a red digit"]


class Counted:
    """A family that counts what it is asked to encode."""

    def __init__(self, family: Family) -> None:
        self.family, self.pictures, self.captions = family, 0, 0

    def encode_images(self, pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        self.pictures += len(pictures)
        return self.family.encode_images(pictures, generator)

    def encode_captions(self, captions: list[str]) -> Any:
        self.captions += len(captions)
        return self.family.encode_captions(captions)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.family, name)


@pytest.fixture(scope="module")
def sd() -> Family:
    return family_of(tiny_pipeline("sd15"))


@pytest.fixture(scope="module")
def xl() -> Family:
    return family_of(tiny_pipeline("sdxl"))


@pytest.fixture
def examples() -> list[Example]:
    shapes = [(16, 16), (40, 20), (17, 30), (16, 16)]
    return [
        Example(in_memory_image(noise(number, *shape), f"p{number}"), caption)
        for number, (shape, caption) in enumerate(zip(shapes, CAPTIONS, strict=True))
    ]


def data(examples: list[Example], family: Any, **options: Any) -> ImageDataset:
    return ImageDataset(examples, family, 16, **{"say": lambda _: None} | options)


def same(one: ImageDataset, other: ImageDataset, indices: list[int]) -> bool:
    left, right = one.batch(indices), other.batch(indices)
    assert left.conditions and right.conditions
    return torch.equal(left.latents, right.latents) and all(
        torch.equal(left.conditions[name], right.conditions[name]) for name in left.conditions
    )


def test_a_batch_holds_latents_captions_conditions_and_weights(sd: Family, examples: list[Example]) -> None:
    batch = data(examples, sd, weight=0.5).batch([3, 1])
    assert batch.latents.dtype == torch.float32 and batch.latents.shape[0] == 2
    assert batch.latents.shape[-1] * sd.pixels_per_latent == 16
    assert batch.captions == [CAPTIONS[3], CAPTIONS[1]]
    assert batch.conditions is not None and len(batch.conditions["encoder_hidden_states"]) == 2
    assert batch.weight.tolist() == [0.5, 0.5] and batch.hints is None
    expected = sd.encode_captions([CAPTIONS[3]])["encoder_hidden_states"][0]
    assert torch.equal(batch.conditions["encoder_hidden_states"][0], expected)
    assert not batch.latents.requires_grad
    assert data(examples, sd, encode_captions=False).batch([0]).conditions is None


def test_latents_depend_on_no_other_picture_of_the_batch(sd: Family, examples: list[Example]) -> None:
    whole = data(examples, sd).batch([0, 1, 2, 3]).latents
    one_by_one = data(examples, sd)
    for number in (2, 0, 3, 1):
        assert torch.equal(one_by_one.batch([number]).latents[0], whole[number])


@pytest.mark.parametrize("cache", [True, False])
def test_equal_indices_and_seeds_give_equal_batches(sd: Family, examples: list[Example], cache: bool) -> None:
    options: dict[str, Any] = {"cache": cache, "crop": "random", "caption_dropout": 0.5}
    first, again = (data(examples, sd, seed=4, **options) for _ in range(2))
    other = data(examples, sd, seed=5, **options)
    again.batch([0, 1])
    assert same(first, again, [1, 2, 6])
    assert not torch.equal(first.batch([1]).latents, other.batch([1]).latents)


def test_what_is_cached_is_encoded_once_and_what_is_not_anew(sd: Family, examples: list[Example]) -> None:
    counted = Counted(sd)
    kept = data(examples, counted)
    kept.prepare()
    assert (counted.pictures, counted.captions) == (4, 3)  # two pictures have one caption
    for _ in range(3):
        kept.batch([0, 1, 2, 3])
    assert torch.equal(kept.batch([1]).latents, kept.batch([5]).latents)
    assert (counted.pictures, counted.captions) == (4, 3)

    anew = data(examples, counted, cache=False, crop="random")
    anew.prepare()
    assert counted.pictures == 4
    assert torch.equal(anew.batch([1]).latents, anew.batch([1]).latents)
    assert counted.pictures == 6
    # The next turn of the same picture: another crop and another noise of the autoencoder.
    assert not torch.equal(anew.batch([1]).latents, anew.batch([5]).latents)


def test_dropped_captions_change_from_turn_to_turn(sd: Family, examples: list[Example]) -> None:
    found = data(examples, sd, caption_dropout=0.5)
    said = [found.batch([index]).captions[0] for index in range(0, 400, 4)]
    assert set(said) == {"", CAPTIONS[0]}
    index = 4 * said.index("")
    batch = found.batch([index])
    assert batch.conditions is not None
    empty = sd.encode_captions([""])["encoder_hidden_states"][0]
    assert torch.equal(batch.conditions["encoder_hidden_states"][0], empty)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "pictures"
    path.mkdir()
    for number, shape in enumerate([(20, 16), (16, 16)]):
        Image.fromarray(noise(number, *shape)).save(path / f"{number}.png")
    yield path


def from_folder(folder: Path, family: Any, **options: Any) -> ImageDataset:
    return data([Example(picture, "a digit") for picture in read_folder(folder)], family, **options)


def test_a_cache_on_disk_is_used_again_and_equals_none(sd: Family, folder: Path, tmp_path: Path) -> None:
    counted, cache = Counted(sd), tmp_path / "cache"
    first = from_folder(folder, counted, cache_dir=cache)
    first.prepare()
    assert (counted.pictures, counted.captions) == (2, 1)
    second = from_folder(folder, counted, cache_dir=cache)
    second.prepare()
    assert (counted.pictures, counted.captions) == (2, 1)
    assert same(first, second, [0, 1]) and same(first, from_folder(folder, sd), [0, 1])
    assert {path.suffix for path in cache.rglob("*") if path.is_file()} == {".safetensors"}


def test_a_renamed_copy_is_known_and_a_changed_file_is_not(sd: Family, folder: Path, tmp_path: Path) -> None:
    counted, cache = Counted(sd), tmp_path / "cache"
    first = from_folder(folder, counted, cache_dir=cache)
    first.prepare()
    (folder / "0.png").rename(folder / "2.png")
    from_folder(folder, counted, cache_dir=cache).prepare()
    assert counted.pictures == 2
    stamp = (folder / "1.png").stat()
    Image.fromarray(noise(7, 16, 16)).save(folder / "1.png")
    os.utime(folder / "1.png", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # a time that says nothing
    changed = from_folder(folder, counted, cache_dir=cache)
    changed.prepare()
    assert counted.pictures == 3
    assert not torch.equal(changed.batch([0]).latents, first.batch([1]).latents)
    assert torch.equal(changed.batch([0]).latents, from_folder(folder, sd).batch([0]).latents)


@pytest.mark.parametrize("change", ["crop", "size", "seed", "weights", "config"])
def test_another_size_crop_seed_or_model_is_encoded_anew(change: str, folder: Path, tmp_path: Path) -> None:
    family = family_of(tiny_pipeline("sd15"))
    counted, cache = Counted(family), tmp_path / "cache"
    from_folder(folder, counted, cache_dir=cache).prepare()
    options: dict[str, Any] = {"cache_dir": cache}
    side = 16
    if change == "crop":
        options |= {"crop": "random", "seed": 3}
    elif change == "size":
        side = 16 + family.divisor
    elif change == "seed":
        options["seed"] = 1
    elif change == "weights":
        next(family.pipeline.vae.parameters()).data.view(-1)[0] += 1e-3
    else:
        family.pipeline.vae.register_to_config(scaling_factor=0.5)
    examples = [Example(picture, "a digit") for picture in read_folder(folder)]
    changed = ImageDataset(examples, counted, side, say=lambda _: None, **options)  # type: ignore[arg-type]
    changed.prepare()
    fresh = ImageDataset(examples, family, side, say=lambda _: None, **options | {"cache_dir": None})
    assert torch.equal(changed.batch([0]).latents, fresh.batch([0]).latents)
    assert counted.pictures > 2


def test_other_text_encoders_encode_captions_anew(folder: Path, tmp_path: Path) -> None:
    family = family_of(tiny_pipeline("sd15"))
    cache = tmp_path / "cache"
    before = from_folder(folder, family, cache_dir=cache).batch([0])
    next(family.pipeline.text_encoder.parameters()).data += 0.1
    after = from_folder(folder, family, cache_dir=cache).batch([0])
    assert before.conditions is not None and after.conditions is not None
    assert torch.equal(before.latents, after.latents)
    assert not torch.equal(before.conditions["encoder_hidden_states"], after.conditions["encoder_hidden_states"])


def test_a_damaged_cache_file_is_written_anew(sd: Family, folder: Path, tmp_path: Path) -> None:
    counted, cache = Counted(sd), tmp_path / "cache"
    first = from_folder(folder, counted, cache_dir=cache)
    first.prepare()
    for path in cache.rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:50])
    second = from_folder(folder, counted, cache_dir=cache)
    second.prepare()
    assert (counted.pictures, counted.captions) == (4, 2)
    assert same(first, second, [0, 1])
    from_folder(folder, counted, cache_dir=cache).prepare()
    assert counted.pictures == 4


def test_buckets_keep_ratios_and_batches_of_one_bucket_have_one_size(sd: Family, examples: list[Example]) -> None:
    side = 4 * sd.divisor
    found = ImageDataset(examples, sd, side, buckets=True, say=lambda _: None)
    assert found.layout()[(side, side)] == 2 and len(found.layout()) == 3
    order = Order([found.bucket(index) for index in range(len(found))], 2, seed=0)
    for step in range(order.per_epoch):
        batch, indices = found.batch(order.indices(step)), order.indices(step)
        height, width = found.bucket(indices[0])
        assert batch.latents.shape[2:] == (height // sd.pixels_per_latent, width // sd.pixels_per_latent)


def test_each_epoch_sees_the_same_pictures_in_another_way(sd: Family, examples: list[Example]) -> None:
    found = data(examples, sd, cache=False, crop="random", caption_dropout=0.5)
    order = Order([found.bucket(index) for index in range(len(found))], 2, seed=0, epoch_in_index=found.epoch_in_index)
    epochs = [[index for step in (0, 1) for index in order.indices(2 * epoch + step)] for epoch in range(3)]
    assert [sorted(index - 4 * epoch for index in seen) for epoch, seen in enumerate(epochs)] == [[0, 1, 2, 3]] * 3
    latents = [found.batch([1 + 4 * epoch]).latents for epoch in range(3)]
    assert not torch.equal(latents[0], latents[1]) and not torch.equal(latents[1], latents[2])


def test_sdxl_is_told_the_picture_s_own_size_and_corner(xl: Family, examples: list[Example]) -> None:
    batch = data(examples, xl).batch([0, 1])
    assert batch.conditions is not None
    # 40 x 20 comes to 32 x 16, of which the middle 16 rows begin at 8.
    assert batch.conditions["time_ids"].tolist() == [[16, 16, 0, 0, 16, 16], [40, 20, 8, 0, 16, 16]]


def test_small_pictures_are_named_once(sd: Family, examples: list[Example]) -> None:
    said: list[str] = []
    small = Example(in_memory_image(noise(0, 4, 8), "tiny"), "x")
    ImageDataset([*examples, small], sd, 16, say=said.append)
    assert said == ["1 of 5 images are smaller than the training size and enlarged: tiny (4.0 times)."]
    ImageDataset([*examples, small], sd, 16, enlarged=4.0, say=said.append)
    assert len(said) == 1


def test_hints_go_the_way_of_their_pictures(sd: Family) -> None:
    picture = noise(0, 40, 20)
    one = Example(in_memory_image(picture, "p"), "x", in_memory_image(picture, "p"))
    for cache in (True, False):
        found = data([one], sd, condition=condition("densepose"), crop="random", cache=cache)
        batch = found.batch([0])
        assert batch.hints is not None and batch.hints.shape == (1, 3, 16, 16)
        assert batch.hints.dtype == torch.float32 and batch.hints.min() >= 0 and batch.hints.max() <= 1
        again = found.batch([0]).hints
        assert again is not None and torch.equal(batch.hints, again)
    # The crop is that of the picture: of a map in two halves the same rows are seen.
    halves = np.zeros((40, 20, 3), dtype=np.uint8)
    halves[20:] = 255
    both = Example(in_memory_image(halves, "p"), "x", in_memory_image(halves, "p"))
    hints = data([both], sd, condition=condition("segm")).batch([0]).hints
    assert hints is not None and hints[0, 0].mean(1).tolist() == [0.0] * 8 + [1.0] * 8


def test_hints_are_made_of_the_part_that_is_seen(sd: Family) -> None:
    picture = np.zeros((48, 16, 3), dtype=np.uint8)
    picture[:4] = 255  # an edge that the crop leaves out
    picture[:, 8:] = 255
    hints = data([Example(in_memory_image(picture, "p"), "x")], sd, condition=condition("sketch")).batch([0]).hints
    assert hints is not None
    assert hints[0, 0, :, 7].min() == 1.0 and hints[0, 0, :, 0].max() == 0.0


def test_a_file_that_changes_its_size_meanwhile_is_named(sd: Family, folder: Path) -> None:
    found = from_folder(folder, sd)
    Image.fromarray(noise(3, 9, 9)).save(folder / "1.png")
    with pytest.raises(DataError, match=r"image 1. Found: 9 x 9 pixels. Needed: 16 x 16, as when the run began"):
        found.batch([1])


def test_sizes_that_the_model_cannot_take_and_no_pictures_are_refused(sd: Family, examples: list[Example]) -> None:
    with pytest.raises(ConfigError, match=rf"resolution=\d+. Needed: a multiple of {sd.divisor} pixels"):
        ImageDataset(examples, sd, sd.divisor * 2 + 1)
    with pytest.raises(DataError, match="images. Found: none"):
        ImageDataset([], sd)
