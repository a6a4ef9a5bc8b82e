"""Buckets and crops, against values worked out by hand."""

from __future__ import annotations

import random

import numpy as np
import pytest

from orthotune.errors import ConfigError
from orthotune.image.data.buckets import Fit, fit, fitted, nearest_size, sizes


def test_sizes_worked_out_by_hand() -> None:
    # 96 x 96 = 9216 pixels, steps of 16: width 80 allows 115 -> 112, 64 allows 144 and is 2.25 times lower.
    assert sizes(96, 8, step=16) == [(112, 80), (96, 96), (80, 112)]
    # ... and with a ratio of 3: 64 x 144; 48 would allow 192, which is 4 times as much.
    assert sizes(96, 8, step=16, widest=3) == [(144, 64), (112, 80), (96, 96), (80, 112), (64, 144)]
    # 512 x 512: 448 allows 585 -> 576, 384 allows 682 -> 640, 320 allows 819 -> 768, more than twice 320.
    assert sizes(512, 8) == [(640, 384), (576, 448), (512, 512), (448, 576), (384, 640)]
    # A step that does not divide the resolution: 40 leaves 96 % 40 = 16, then 56 allows 164 -> 160: too lying.
    assert sizes(96, 8, step=40) == [(96, 96)]


@pytest.mark.parametrize(("resolution", "divisor"), [(512, 8), (768, 16), (1024, 64), (96, 32), (32, 8), (16, 16)])
def test_no_size_is_larger_than_the_square_or_unfit_for_the_model(resolution: int, divisor: int) -> None:
    known = sizes(resolution, divisor)
    assert (resolution, resolution) in known
    for height, width in known:
        assert height % divisor == width % divisor == 0
        assert height * width <= resolution**2
        assert max(height, width) <= 2 * min(height, width)
        assert (width, height) in known


def test_sizes_that_the_model_cannot_take_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"resolution=500. Needed: a multiple of 16 pixels. Pass 496 or 512"):
        sizes(500, 16)
    with pytest.raises(ConfigError, match=r"bucket step=12. Needed: a multiple of 8 pixels"):
        sizes(512, 8, step=12)
    with pytest.raises(ConfigError, match=r"resolution=4. Needed: a multiple of 8 pixels. Pass 8"):
        sizes(4, 8)
    with pytest.raises(ConfigError, match="a ratio of 1 or more"):
        sizes(64, 8, widest=0.5)


def test_the_nearest_ratio_is_the_nearest_factor() -> None:
    known = [(80, 48), (64, 64), (48, 80)]
    assert nearest_size(1000, 1000, known) == (64, 64)
    # Ratio 1.333: 1.333 away from the square, 1.25 from 5 : 3.
    assert nearest_size(600, 800, known) == (48, 80)
    assert nearest_size(800, 600, known) == (80, 48)
    # The square and 5 : 3 are equally far from the root of 5 / 3 = 1.29.
    assert nearest_size(100, 128, known) == (64, 64)
    assert nearest_size(100, 130, known) == (48, 80)
    assert nearest_size(10, 1000, known) == (48, 80)


def test_a_picture_covers_its_bucket_and_loses_what_stands_out() -> None:
    # 300 x 200 into 64 x 64: a third of the width's 200 is too small, so by 0.32 to 96 x 64, 16 off above and below.
    assert fit(300, 200, (64, 64)) == Fit((64, 64), (96, 64), 16, 0, 0.32)
    # 33 x 100 into 48 x 80: by 48 / 33 to 48 x 145, of which the middle 80 begin at 32.
    assert fit(33, 100, (48, 80)) == Fit((48, 80), (48, 145), 0, 32, 48 / 33)
    assert fit(64, 64, (64, 64)) == Fit((64, 64), (64, 64), 0, 0, 1.0)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 777), (777, 1), (31, 33), (1023, 511)])
def test_no_crop_leaves_the_picture(height: int, width: int) -> None:
    for size in [(16, 24), (24, 16), (8, 8)]:
        for crop in ("centre", "random"):
            how = fit(height, width, size, crop, random.Random(3))  # type: ignore[arg-type]
            assert how.resized[0] == size[0] or how.resized[1] == size[1]
            assert 0 <= how.top <= how.resized[0] - size[0] and 0 <= how.left <= how.resized[1] - size[1]
            assert fitted(np.zeros((height, width, 3), dtype=np.uint8), how).shape == (*size, 3)


def test_random_crops_are_drawn_from_the_given_chance_and_reach_the_ends() -> None:
    tops = [fit(40, 16, (16, 16), "random", random.Random(seed)).top for seed in range(300)]
    assert tops == [fit(40, 16, (16, 16), "random", random.Random(seed)).top for seed in range(300)]
    assert set(tops) == set(range(25))
    with pytest.raises(ConfigError, match="centre or random"):
        fit(4, 4, (2, 2), "middle")  # type: ignore[arg-type]


def test_what_fits_is_cut_untouched_and_names_are_never_mixed() -> None:
    pixels = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3)
    assert (fitted(pixels, fit(6, 4, (4, 4))) == pixels[1:5]).all()
    classes = np.zeros((30, 30, 3), dtype=np.uint8)
    classes[:, 11:] = (200, 10, 90)
    small = fitted(classes, fit(30, 30, (16, 16)), sharp=True)
    assert {tuple(pixel) for pixel in small.reshape(-1, 3)} == {(0, 0, 0), (200, 10, 90)}
    assert len(np.unique(fitted(classes, fit(30, 30, (16, 16))))) > 4
