"""Ratios are formed within a repetition, and the floor is 1 by construction."""

from __future__ import annotations

import gc
import time
from functools import partial

import pytest
import torch

from harness.measure import FEWEST, WARM_UP, Timing, measure, summary
from harness.step import Step, step_of
from harness.subject import Subject

CPU = torch.device("cpu")
NOTHING = Step(lambda: None)


def test_floor_is_one_whatever_the_clock_says() -> None:
    floor = measure({"floor": NOTHING, "other": NOTHING}, CPU, repetitions=3)["floor"]
    assert floor == Timing(1.0, 1.0, 1.0, 3)


def test_ratios_are_of_the_same_repetition() -> None:
    # the machine is four times slower in the second repetition: no trace of that may remain
    assert summary([3.0, 12.0], [2.0, 8.0]) == Timing(1.5, 1.5, 1.5, 2)


def test_spread_and_absolute_times() -> None:
    found = summary([float(n) for n in range(1, 12)], [1.0] * 11, absolute=True)
    assert (found.median, found.p10, found.p90) == (6.0, 2.0, 10.0)
    assert found.milliseconds == 6000.0


def test_one_repetition_is_its_own_spread() -> None:
    assert summary([3.0], [2.0]) == Timing(1.5, 1.5, 1.5, 1)


def test_contenders_alternate_and_each_begins_once(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("harness.measure.SHORTEST", 0.0)  # one call each
    measure({name: Step(partial(said.append, name)) for name in "abc"}, CPU, repetitions=3)
    assert "".join(said[: 3 * WARM_UP + 1]) == "abc" * WARM_UP + "a"  # the last finds out how long a step takes
    assert "".join(said[3 * WARM_UP + 1 :]) == "abc" + "bca" + "cab"


def test_a_contender_may_settle_before_it_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("harness.measure.SHORTEST", 0.0)
    measure({name: Step(partial(said.append, name)) for name in "ab"}, CPU, repetitions=2, settle=True)
    assert "".join(said[2 * WARM_UP + 1 :]) == "aabb" + "bbaa"


def test_time_ends_a_cell_but_not_before_the_fewest() -> None:
    assert measure({"floor": NOTHING}, CPU, repetitions=50, seconds=0.0)["floor"].repetitions == FEWEST


def test_the_collector_is_back_after_a_failure() -> None:
    def fails() -> None:
        if not gc.isenabled():
            raise RuntimeError

    with pytest.raises(RuntimeError):
        measure({"floor": Step(fails)}, CPU)
    assert gc.isenabled()


def test_what_comes_before_a_step_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]  # turned by the step and by what comes before it, so that no other process can
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def takes(seconds: float) -> None:
        clock[0] += seconds

    steps = {"floor": Step(partial(takes, 1.0)), "other": Step(partial(takes, 2.0), partial(takes, 50.0))}
    assert measure(steps, CPU, repetitions=3)["other"].median == 2.0


def test_trained_numbers_change_before_each_training_step_and_in_no_other_mode() -> None:
    # a rotation kept from the step before would make training look faster than it is
    for mode, changes in (("train", True), ("eval", False), ("decode", False)):
        model = torch.nn.Linear(3, 2)
        x = torch.ones(1, 3, requires_grad=changes)
        step = step_of(Subject(model, x, lambda model, x: model(x)), model, mode)  # type: ignore[arg-type]
        before = [p.detach().clone() for p in model.parameters()]
        step()
        assert [not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True)] == [changes] * 2


@pytest.mark.parametrize("mode", ["train", "eval", "decode"])
def test_a_step_leaves_no_gradient_behind(mode: str) -> None:
    model = torch.nn.Linear(3, 2)
    frozen = Subject(model, torch.ones(2, 3, requires_grad=mode == "train"), lambda model, x: model(x))
    step_of(frozen, model, mode)()  # type: ignore[arg-type]
    assert frozen.x.grad is None
    assert model.weight.grad is None


def test_a_training_step_computes_every_gradient() -> None:
    model = torch.nn.Linear(3, 2)
    seen: list[str] = []
    for name, tensor in (("weight", model.weight), ("bias", model.bias)):
        tensor.register_hook(lambda _, name=name: seen.append(name))  # type: ignore[misc]
    x = torch.ones(2, 3, requires_grad=True)
    x.register_hook(lambda _: seen.append("x"))
    step_of(Subject(model, x, lambda model, x: model(x)), model, "train")()
    assert sorted(seen) == ["bias", "weight", "x"]
