"""Load models without the progress bars of diffusers and transformers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Context manager that switches the progress bars of both libraries off and then restores them."""
    import diffusers.utils.logging
    import transformers.utils.logging

    modules: list[Any] = [diffusers.utils.logging, transformers.utils.logging]
    enabled = [module for module in modules if module.is_progress_bar_enabled()]
    for module in enabled:
        module.disable_progress_bar()
    try:
        yield
    finally:
        for module in enabled:
            module.enable_progress_bar()
