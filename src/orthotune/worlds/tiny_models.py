"""Tiny models without pretraining, made from their config by a word: recipes run on them without any download."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from orthotune.files.atomic import atomic_write
from orthotune.files.installed_worlds import cached_model

VIT = "tiny-vit"


def tiny_model(word: str) -> Path | None:
    """The folder of a tiny model, which is made in the cache when it is first asked for; None for any other word.

    The weights are random and always the same ones, so that an adapter of such a model can be loaded again.

    Args:
        word: ``tiny-vit``.

    Raises:
        OutputError: the cache cannot be written to.

    Example:
        >>> tiny_model("google/vit-base-patch16-224") is None
        True
    """
    if word not in MAKERS:
        return None
    folder = cached_model(word)
    if not (folder / "config.json").is_file():
        with torch.random.fork_rng(), _without_bars(), atomic_write(folder) as partial:
            torch.manual_seed(0)
            for part in MAKERS[word]():
                part.save_pretrained(partial)
    return folder


@contextmanager
def _without_bars() -> Iterator[None]:
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _vit() -> list[Any]:
    """A vision transformer for images of 32 pixels: 3 layers of 64 features, 0.1 million parameters.

    Its weights are six times as large as usual before pretraining: frozen ones must already tell images apart.
    """
    from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

    config = ViTConfig(
        image_size=32, patch_size=8, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128,
        initializer_range=0.125,
    )
    side = {"height": 32, "width": 32}
    return [ViTModel(config, add_pooling_layer=False), ViTImageProcessorPil(size=side)]


#: word -> what makes the model and its processor
MAKERS: dict[str, Callable[[], list[Any]]] = {VIT: _vit}
