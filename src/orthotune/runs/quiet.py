"""Keep the libraries below from talking over our own progress bar."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import transformers

# They speak about what the recipe decides on purpose, or about image processors that nothing here uses.
HUSHED = (
    "transformers.trainer",
    "transformers.tokenization_utils_base",
    "transformers.utils.import_utils",
    "trl",
)


@contextmanager
def quiet() -> Iterator[None]:
    """Switch off the bars and remarks of datasets, transformers and TRL, and switch them on again afterwards."""
    # Image models are trained without it.
    datasets: Any = import_module("datasets") if find_spec("datasets") else None
    bars = datasets is None or datasets.are_progress_bars_disabled()
    loading = transformers.utils.logging.is_progress_bar_enabled()
    levels = {name: logging.getLogger(name).level for name in HUSHED}
    if datasets is not None:
        datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    for name in HUSHED:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # Names that TRL and pipelines still use, and transformers and diffusers are about to rename.
            warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|diffusers")
            # On import, of trainers that TRL keeps there.
            warnings.filterwarnings("ignore", message=".*trl.experimental")
            yield
    finally:
        if datasets is not None and not bars:
            datasets.enable_progress_bars()
        if loading:
            transformers.utils.logging.enable_progress_bar()
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
