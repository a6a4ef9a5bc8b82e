"""A thousand spoilt adapters: each is read and put on a model as what it now says, or refused in our words."""

from __future__ import annotations

import random
import signal
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftConfig, PeftModel
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import Tensor

from orthotune import load_adapter
from orthotune.errors import OrthotuneError
from orthotune.formats import ReadOptions, read_adapter
from orthotune.layers.base import OFTLayer
from orthotune.tuner import admission
from tests.safety.mutations import mutated
from tests.support.bases import network
from tests.support.kept_results import keep_result
from tests.support.producers import Produced, produced

COUNT = 1000
CASES = produced()
#: What PEFT itself can be given; the fuzzer takes one of them every second time.
FOLDERS = [case for case in CASES if case.adapter.is_dir() and "-oft" in case.producer]


class _TooLong(BaseException):
    pass


@contextmanager
def _not_for_ever(seconds: float = 30.0) -> Iterator[None]:
    """A guard against a hang, far above what a slow machine takes."""

    def ring(*_: Any) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _outcome(case: Produced, path: Path, host: bool) -> str:
    """What became of an adapter. Two ways that share no code must give the same weights: the reader's and a layer's."""
    net = network(case)
    weights = {name: p.detach().clone() for name, p in net.named_parameters()}
    if host and not _peft_reads(path):
        return "refused by PEFT, before it asks us"
    options = {name: value for name, value in asdict(case.options).items() if value is not None}
    try:
        if host:
            model, names = PeftModel.from_pretrained(net, path), {}
        else:
            model, report = load_adapter(net, path, strict=False, **options)
            names = {module: layer for layer, module in report.matched.items()}
        state = read_adapter(path, ReadOptions(**options))
    except OrthotuneError as error:
        assert len(str(error)) < 3000, "an error that nobody can read"
        return "refused"
    inner = model.base_model.model
    compared = 0
    stems = {prefix: layer for layer, prefix in state.prefixes.items()}
    for name, layer in inner.named_modules():
        if not isinstance(layer, OFTLayer):
            continue
        known = names.get(name, name)
        known = stems.get(known, known)
        if known not in (*state.layers, *state.transforms):
            continue
        before = weights[f"{name}.weight"]
        try:
            expected = state.transform(known).apply(before)
        except OrthotuneError:
            continue  # what the file says needs more than a weight
        layer.merge()
        _alike(layer.get_base_layer().weight, expected, before)
        layer.unmerge()
        compared += 1
    return f"{'host' if host else 'own'}: {'compared' if compared else 'nothing of it fits'}"


def _peft_reads(folder: Path) -> bool:
    """Whether PEFT finds out that the folder is ours; until then it is in its own words."""
    try:
        return PeftConfig._get_peft_type(str(folder)) in PEFT_TYPE_TO_CONFIG_MAPPING
    except Exception:
        return False


def _alike(found: Any, expected: Tensor, before: Tensor) -> None:
    if not expected.isfinite().all():
        assert not found.isfinite().all()
        return
    # Numbers of 1e3 and more turn by nearly pi: the map is as sensitive as they are large.
    torch.testing.assert_close(found, expected.to(found.dtype), rtol=1e-3, atol=1e-3 * float(before.abs().max()))


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no guard against a hang")
def test_a_thousand_spoilt_adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "SECONDS", 1.0)
    seen: Counter[str] = Counter()
    for number in range(COUNT):
        draw = random.Random(number)
        case = draw.choice(FOLDERS if draw.random() < 0.5 else CASES)
        for old in tmp_path.iterdir():  # the folder stays: to remove one takes longer than to read an adapter
            old.unlink()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            path, done = mutated(case, draw, tmp_path)
            host = case in FOLDERS and draw.random() < 0.5
            try:
                with _not_for_ever():
                    seen[_outcome(case, path, host)] += 1
            except (Exception, _TooLong) as error:
                pytest.fail(f"number {number}, {case}, {'PEFT' if host else 'load_adapter'}: {done}\n{error!r}")
    keep_result("fuzz-adapters", {"adapters": COUNT, **dict(sorted(seen.items()))})
    assert sum(seen.values()) == COUNT
    # a fuzzer that only meets refusals, or none, looks at nothing
    assert (
        seen["refused"] > COUNT // 4 and seen["own: compared"] > COUNT // 10 and seen["host: compared"] > COUNT // 100
    )
