"""The image world's digits: those that ship, or else those of the libraries that they come from."""

from __future__ import annotations

import pytest

from image_collect import collect_sources
from orthotune.worlds import image
from orthotune.worlds.image_sources import Sources


@pytest.fixture(scope="session")
def image_sources() -> Sources:
    if image.DATA.is_file():
        return image.load_sources()
    pytest.importorskip("sklearn")
    pytest.importorskip("skimage")
    return collect_sources()
