"""Keep the libraries below from talking over our own progress bar."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import datasets
import transformers

# Both speak about what the recipe decides on purpose.
HUSHED = ("transformers.trainer", "transformers.tokenization_utils_base", "trl.trainer.sft_trainer")


@contextmanager
def quiet() -> Iterator[None]:
    """Switch off the bars and remarks of datasets, transformers and TRL, and switch them on again afterwards."""
    bars = datasets.are_progress_bars_disabled()
    loading = transformers.utils.logging.is_progress_bar_enabled()
    levels = {name: logging.getLogger(name).level for name in HUSHED}
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    for name in HUSHED:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # Names that TRL still uses and transformers is about to rename.
            warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
            yield
    finally:
        if not bars:
            datasets.enable_progress_bars()
        if loading:
            transformers.utils.logging.enable_progress_bar()
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
