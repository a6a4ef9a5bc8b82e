"""Every kind of control picture: made of pictures, read from files."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image

from orthotune.errors import ConfigError, DataError
from orthotune.image.control.conditions import landmarks, sketch
from orthotune.image.control.conditions.registry import KINDS, condition
from tests.support.images import noise, step


def test_the_six_signals_and_no_other() -> None:
    assert list(KINDS) == ["canny", "segm", "sketch", "depth", "densepose", "landmark"]
    with pytest.raises(ConfigError, match=r"condition 'cany'. Needed: one of canny.*Did you mean 'canny'"):
        condition("cany")


def test_kinds_that_are_read_only_say_how_to_give_them() -> None:
    for name in ("segm", "depth", "densepose"):
        with pytest.raises(ConfigError, match=rf"condition {name}. Found: no files.*Pass conditions=FOLDER"):
            condition(name).made(noise(0))


def test_canny_is_the_measure_s_canny() -> None:
    if find_spec("cv2") is None:
        with pytest.raises(ConfigError, match=r'no library cv2. Install it with pip install "orthotune\[metrics\]"'):
            condition("canny").made(noise(0))
        return
    from orthotune.metrics.edges import canny, edge_map

    picture = step(7)
    made = condition("canny").made(picture)
    assert (edge_map(made, "x") == canny(picture)).all() and made.any()


def test_a_photograph_is_no_map_of_edges() -> None:
    kind = condition("canny")
    edges = np.repeat((noise(0)[..., :1] > 128) * np.uint8(255), 3, axis=2)
    assert (kind.read(Image.fromarray(edges), "x") == edges).all()
    with pytest.raises(DataError, match="grey pixels. Needed: a map of edges"):
        kind.read(Image.fromarray(noise(1)), "condition p")


def test_a_sketch_draws_steps_of_any_colour_at_their_place_and_nothing_on_flat_ground() -> None:
    flat = np.full((30, 41, 3), 77, dtype=np.uint8)
    assert not sketch.make(flat).any()
    for channel in range(3):
        picture = flat.copy()
        picture[:, 20:, channel] = 255
        lines = sketch.make(picture)[..., 0].astype(int)
        assert (lines == lines[:1]).all()  # nothing depends on the row, at the rim neither
        assert lines[0].argmax() in (19, 20) and lines[0, 19] == lines[0, 20]
        assert lines[0, :15].max() == lines[0, 26:].max() == 0


def test_a_sketch_is_soft_grows_with_contrast_and_forgets_fine_texture() -> None:
    def at(contrast: int) -> int:
        picture = np.full((512, 64, 3), 100, dtype=np.uint8)
        picture[256:] += np.uint8(contrast)
        return int(sketch.make(picture)[..., 0].max())

    assert 0 < at(20) < at(60) < at(120) <= 255
    board = (np.indices((256, 256)).sum(0) % 2 * 60).astype(np.uint8)
    texture = np.repeat(board[..., None], 3, axis=2)
    edge = texture // 20
    edge[:, 128:] += 60
    # A chess board of single pixels is gone once it is smoothed, a step of the same height is not.
    assert sketch.make(texture)[..., 0].max() < sketch.make(edge)[..., 0].max() / 2


def test_maps_of_class_numbers_have_one_colour_per_class_whatever_else_is_in_them() -> None:
    kind = condition("segm")
    few, many = np.array([[0, 3]], dtype=np.uint8), np.array([[3, 0], [7, 9]], dtype=np.uint8)
    first, second = (kind.read(Image.fromarray(map_), "x") for map_ in (few, many))
    assert (first[0, 1] == second[0, 0]).all() and (first[0, 0] == second[0, 1]).all()
    assert len({tuple(pixel) for pixel in second.reshape(-1, 3)}) == 4
    palette = Image.fromarray(many).convert("P")
    palette.putdata(many.reshape(-1).tolist())
    assert (kind.read(palette, "x") == second).all()
    coloured = noise(0)
    assert (kind.read(Image.fromarray(coloured), "x") == coloured).all()
    assert kind.sharp


def test_depth_of_8_bits_stays_and_deeper_maps_are_stretched() -> None:
    kind = condition("depth")
    assert kind.read(Image.fromarray(np.array([[3, 90]], dtype=np.uint8)), "x")[0].tolist() == [[3] * 3, [90] * 3]
    for deep in (np.array([[500, 1500, 2500]], dtype=np.uint16), np.array([[0.5, 1.5, 2.5]], dtype=np.float32)):
        assert kind.read(Image.fromarray(deep), "x")[0, :, 0].tolist() == [0, 128, 255]
    with pytest.raises(DataError, match="not depths"):
        kind.read(Image.fromarray(np.full((2, 2), np.nan, dtype=np.float32)), "depth p")
    with pytest.raises(DataError, match="depth p"):
        kind.read(Image.fromarray(np.full((2, 2), 900, dtype=np.uint16)), "depth p")


def face(scale: float) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, 68, endpoint=False)
    return np.stack([np.cos(angle), np.sin(angle)], 1) * scale + 64


def test_landmarks_are_lines_through_all_68_points() -> None:
    points = face(40)
    drawn = landmarks.draw(points, 128, 128)
    assert drawn.shape == (128, 128, 3) and drawn.dtype == np.uint8
    for x, y in points.round().astype(int):
        assert drawn[y - 1 : y + 2, x - 1 : x + 2].any()
    numbers = sorted(number for first, last, _, _ in landmarks.LINES for number in range(first, last + 1))
    assert numbers == list(range(68))
    assert {tuple(pixel) for pixel in drawn.reshape(-1, 3)} == {(0, 0, 0), *(line[3] for line in landmarks.LINES)}
    moved = landmarks.draw(points + np.array([3, 0]), 128, 128)
    assert (moved[:, 3:] == drawn[:, :-3]).all()


def test_points_beyond_the_picture_are_cut_off() -> None:
    assert not landmarks.draw(face(10) + 500, 96, 64).any()


@pytest.mark.skipif(find_spec("face_alignment") is not None, reason="face-alignment is here")
def test_without_a_detector_landmarks_say_what_to_install() -> None:
    with pytest.raises(ConfigError, match=r'no library face_alignment. Install it .*"orthotune\[landmarks\]"'):
        condition("landmark").made(noise(0))


def test_no_kind_writes_into_what_it_reads() -> None:
    picture = noise(2, 24, 31)
    before = picture.copy()
    torch.manual_seed(0)
    condition("sketch").made(picture)
    for kind in KINDS.values():
        if kind.name != "canny":
            kind.read(Image.fromarray(picture), "x")
    assert (picture == before).all()
