"""Pictures of a folder: found in one order, brought to one form, the broken ones named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from orthotune.errors import DataError
from orthotune.image.data.image_folder import NAMED, in_memory_image, open_images, read_folder
from tests.support.images import noise, save


def test_pictures_come_by_name_whatever_their_kind_size_and_script(tmp_path: Path) -> None:
    for number, name in enumerate(["ünder.webp", "b.jpg", "a.png", "日本.bmp", "sub/Z.JPEG", "10.png", "9.png"]):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(noise(number, 10 + number, 23 - number)).save(path)
    pictures = read_folder(tmp_path)
    assert [one.name for one in pictures] == ["10", "9", "a", "b", "sub/Z", "ünder", "日本"]
    assert [(one.height, one.width) for one in pictures][:3] == [(15, 18), (16, 17), (12, 21)]
    assert all(one.pixels().shape == (one.height, one.width, 3) for one in pictures)
    assert read_folder(tmp_path) == pictures


def test_a_camera_s_turn_is_followed_in_pixels_and_size(tmp_path: Path) -> None:
    lying = noise(0, 4, 6)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    Image.fromarray(lying).save(tmp_path / "phone.png", exif=exif)
    (picture,) = read_folder(tmp_path)
    assert (picture.height, picture.width) == (6, 4)
    assert (picture.pixels() == np.rot90(lying, -1)).all()


def test_transparency_lies_on_white_grey_becomes_colour_and_16_bits_8(tmp_path: Path) -> None:
    clear = np.zeros((2, 3, 4), dtype=np.uint8)
    clear[0, 0] = (10, 20, 30, 255)
    Image.fromarray(clear).save(tmp_path / "clear.png")
    Image.fromarray(np.array([[0, 128, 255]], dtype=np.uint8)).save(tmp_path / "grey.png")
    Image.fromarray(np.array([[0, 257 * 7, 65535]], dtype=np.uint16)).save(tmp_path / "deep.png")
    Image.new("CMYK", (3, 1)).save(tmp_path / "print.jpg")
    clear_one, deep, grey, printed = (picture.pixels() for picture in read_folder(tmp_path))
    assert clear_one[0, 0].tolist() == [10, 20, 30] and clear_one[1, 2].tolist() == [255] * 3
    assert grey[0].tolist() == [[0] * 3, [128] * 3, [255] * 3]
    assert deep[0].tolist() == [[0] * 3, [7] * 3, [255] * 3]
    assert printed[0].tolist() == [[255] * 3] * 3


def _damage(folder: Path) -> int:
    """Every way in which a file is no whole picture; how many they are."""
    cut = Image.fromarray(noise(9, 40, 40))
    for suffix in ("png", "jpg", "webp", "bmp"):
        path = folder / f"cut-{suffix}.{suffix}"
        cut.save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (folder / "empty.png").touch()
    (folder / "text.jpg").write_text("not a picture")
    (folder / "header.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 40)
    Image.fromarray(np.full((2, 2), 1e6, dtype=np.float32)).save(folder / "fractions.tif")
    return 8


def test_broken_pictures_are_named_counted_and_skipped_or_refused(tmp_path: Path) -> None:
    save(tmp_path, good=noise(0))
    count = _damage(tmp_path)
    said: list[str] = []
    assert [one.name for one in read_folder(tmp_path, say=said.append)] == ["good"]
    assert len(said) == 1 and said[0].startswith(f"{count} of {count + 1} images in {tmp_path} cannot be read")
    for name in ("cut-png", "cut-jpg", "cut-webp", "cut-bmp", "empty", "text", "header", "fractions"):
        assert name in said[0]
    with pytest.raises(DataError, match=rf"{count} of {count + 1} that cannot be read.*Repair or remove"):
        read_folder(tmp_path, broken="refuse")
    with pytest.raises(DataError, match="broken='drop'. Needed: skip or refuse"):
        read_folder(tmp_path, broken="drop")  # type: ignore[arg-type]


def test_nothing_left_and_nothing_there_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Found: none. Needed: files that end in .png"):
        read_folder(tmp_path)
    with pytest.raises(DataError, match="no such (file|folder)"):
        read_folder(tmp_path / "no")
    (tmp_path / "only.png").write_text("x")
    with pytest.raises(DataError, match="1 of 1 that cannot be read"):
        read_folder(tmp_path)


def test_long_lists_of_broken_pictures_end_in_a_count() -> None:
    origins: list[tuple[str, Path | bytes]] = [(f"p{number}", b"x") for number in range(NAMED + 2)]
    said: list[str] = []
    good = in_memory_image(noise(0), "good")
    seen = open_images([*origins, ("good", good.origin)], "here", say=said.append)
    assert seen[:-1] == [None] * (NAMED + 2) and seen[-1] == good
    assert said[0].endswith("; and 2 more.")


def test_a_picture_in_memory_is_as_its_array(tmp_path: Path) -> None:
    pixels = noise(1, 5, 7)
    picture = in_memory_image(pixels, "one")
    assert (picture.height, picture.width) == (5, 7) and (picture.pixels() == pixels).all()
    path = tmp_path / "one.png"
    path.write_bytes(picture.content())
    assert (read_folder(tmp_path)[0].pixels() == pixels).all()


def test_a_picture_that_vanished_is_named(tmp_path: Path) -> None:
    (picture,) = read_folder(save(tmp_path, gone=noise(0)))
    (tmp_path / "gone.png").unlink()
    with pytest.raises(DataError, match="image gone. Found: no such file"):
        picture.pixels()
