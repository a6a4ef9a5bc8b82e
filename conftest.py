"""What is collected, docstrings of every module but for those whose library is not on this machine; and its cost."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from importlib.util import find_spec

import pytest

# Triton is optional. Any other module that cannot be imported is an error, not a skipped test.
collect_ignore = (
    []
    if find_spec("triton")
    else [f"src/orthotune/kernels/triton_{name}.py" for name in ("cayley", "rotate", "tokens")]
)
# Examples of scores that scikit-learn counts.
collect_ignore += [] if find_spec("sklearn") else [f"src/orthotune/metrics/{name}.py" for name in ("classes", "tags")]
# The classes of an engine that has an environment of its own (`make test-vllm`).
collect_ignore += [] if find_spec("vllm") else ["src/orthotune/serving/vllm_0_32.py"]

# What makes the page of the studio; its environment is that of `make test-studio`.
STUDIO = ("page", "start_tab", "run_tab", "after_tab", "compare_tab", "dialogue")
if not find_spec("gradio"):
    collect_ignore += [*(f"src/orthotune/studio/{name}.py" for name in STUDIO), "tests/studio/in_browser.py"]


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Collecting makes a million objects that stay: looking for garbage among them took a quarter of its time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()  # and every later collection passes over them


def pytest_unconfigure() -> None:
    """Libraries that count at the end what they left see the objects again."""
    gc.unfreeze()
