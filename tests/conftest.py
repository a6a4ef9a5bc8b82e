"""What holds for every test: one thread per xdist worker, no network, no display; a tiny language model and texts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.after_peft import Run, after_peft

if "PYTEST_XDIST_WORKER" in os.environ:
    # Two workers with two threads each on two cores run slower than with one each.
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Without a GPU Triton's kernels run in its interpreter; it reads this when a kernel is defined.
if not os.path.exists("/dev/nvidia0"):
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """What a test writes need not outlive the machine; those about flushing put a flush of their own here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="session")
def fresh_after_peft(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Runs code in a process that has imported torch and PEFT, and nothing else."""
    if not hasattr(os, "fork"):
        pytest.skip("the processes are forks of one")
    with after_peft(tmp_path_factory.mktemp("after-peft")) as run:
        yield run


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.support.tiny_text import save_model

    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def text_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.support.tiny_text import texts, write_jsonl

    return write_jsonl(tmp_path_factory.mktemp("data") / "new.jsonl", texts(24, "blue"))


@pytest.fixture(scope="session")
def old_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.support.tiny_text import texts, write_jsonl

    return write_jsonl(tmp_path_factory.mktemp("data") / "old.jsonl", texts(4, "RED-"))
