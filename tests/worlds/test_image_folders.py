"""The image world's data through the doors that a user's own comes through: in memory and on disk the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from orthotune.errors import DataError, OutputError
from orthotune.image.control.conditions.registry import condition
from orthotune.image.control.data import control_examples as read_control
from orthotune.image.data.captions import read_examples
from orthotune.image.data.image_folder import read_folder
from orthotune.worlds import image, image_folders
from orthotune.worlds.image_data import compose, mask

pytestmark = pytest.mark.skipif(not image.DATA.is_file(), reason="the image world is not built")


def test_the_subject_is_the_world_s_subject_and_its_folder_reads_back(tmp_path: Path) -> None:
    sources = image.load_sources()
    pictures = image_folders.subject_images()
    for picture, scene in zip(pictures, image.subject_scenes(sources), strict=True):
        assert torch.equal(torch.from_numpy(picture.pixels()).permute(2, 0, 1), compose(scene, sources))
    read = read_folder(image_folders.write_subject(tmp_path / "below" / "subject"))
    assert [one.name for one in read] == [one.name for one in pictures]
    assert all((one.pixels() == other.pixels()).all() for one, other in zip(read, pictures, strict=True))


def test_captioned_digits_read_back_with_their_captions(tmp_path: Path) -> None:
    examples = image_folders.captioned_digits(12, seed=3)
    read = read_examples(image_folders.write_captioned(tmp_path / "nines", 12, seed=3))
    assert [one.caption for one in read] == [one.caption for one in examples]
    assert [" nine on " in one.caption for one in read] == [True, False] * 6
    assert [one.image.content() for one in read] == [one.image.content() for one in examples]
    assert examples == image_folders.captioned_digits(12, seed=3) != image_folders.captioned_digits(12, seed=4)


@pytest.mark.parametrize("kind", ["segm", "sketch"])
def test_control_pairs_read_back(tmp_path: Path, kind: str) -> None:
    examples = image_folders.control_examples(kind, 5, seed=1, held_out=True)
    folder = image_folders.write_control(tmp_path / kind, kind, 5, seed=1, held_out=True)
    read = read_control(folder, condition(kind))
    assert [one.caption for one in read] == [one.caption for one in examples]
    assert (folder / "conditions").is_dir() == (kind == "segm")
    for one, other in zip(read, examples, strict=True):
        assert (one.image.pixels() == other.image.pixels()).all()
        assert (one.condition is None) == (kind == "sketch")
        if one.condition and other.condition:
            assert (one.condition.pixels() == other.condition.pixels()).all()


def test_a_mask_is_where_the_digit_is() -> None:
    sources = image.load_sources()
    (scene,) = image.control_scenes(sources, 1, seed=5, held_out=False)
    (one,) = image_folders.control_examples("segm", 1, seed=5)
    assert one.condition is not None
    pixels = torch.from_numpy(one.condition.pixels())
    assert torch.equal(pixels[..., 0] == 255, mask(scene, sources) > 0.5)
    assert set(pixels.unique().tolist()) == {0, 255}


def test_pictures_to_test_with_are_others_than_those_to_train_on() -> None:
    train = {one.image.content() for one in image_folders.control_examples("sketch", 40)}
    test = {one.image.content() for one in image_folders.control_examples("sketch", 40, held_out=True)}
    assert not train & test


def test_nothing_is_overwritten_and_other_kinds_are_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(OutputError, match="existing files. Needed: a new or empty folder"):
        image_folders.write_subject(tmp_path)
    with pytest.raises(DataError, match="'depth' of the image world. Needed: one of segm, canny, sketch"):
        image_folders.control_examples("depth")
    assert len(image_folders.class_images(7)) == 7
    image_folders.write_class(tmp_path / "class", 3)
    assert len(read_folder(tmp_path / "class")) == 3
