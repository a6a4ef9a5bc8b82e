"""Steps that are not finite, found without a trainer: by the loss of a batch or the gradients of a step."""

from __future__ import annotations

from types import SimpleNamespace as Stub
from typing import Any

import pytest
import torch
from torch import nn

from orthotune.errors import TrainingError
from orthotune.text.nonfinite_steps import NonFiniteSteps

NAN = torch.tensor(float("nan"))
FINE = torch.tensor(1.0)


def _trainer(**accelerator: Any) -> Any:
    found = {"sync_gradients": True, "scaler": None, "num_processes": 1} | accelerator
    return Stub(
        accelerator=Stub(**found),
        state=Stub(global_step=4),
        args=Stub(output_dir="checkpoints"),
        loss_again=lambda model, inputs: model(inputs["input"]),
    )


def _model(gradient: float = 1.0) -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1.0)
    assert model[1].bias.grad is not None
    model[1].bias.grad[0] = gradient
    return model


def test_a_finite_step_keeps_its_gradients() -> None:
    steps, model = NonFiniteSteps(0, print), _model()
    steps.after_batch(_trainer(), model, FINE, {})
    assert steps.skipped == [] and steps.unmeasured(5) == {}
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_bad_batch_is_remembered_to_the_last_one_of_its_step() -> None:
    messages: list[str] = []
    steps, model = NonFiniteSteps(1, messages.append), _model()
    steps.after_batch(_trainer(sync_gradients=False), model, NAN, {"input": torch.ones(1, 2)})
    assert steps.skipped == [] and all(parameter.grad is not None for parameter in model.parameters())
    steps.after_batch(_trainer(), model, FINE, None)
    assert [(one["step"], one["kind"]) for one in steps.skipped] == [(5, "loss")] and len(messages) == 1
    assert all(parameter.grad is None for parameter in model.parameters())
    assert steps.unmeasured(5) == {"grad_norm": None, "loss": None} and steps.unmeasured(6) == {}
    # The next step begins anew.
    steps.after_batch(_trainer(), _model(), FINE, None)
    assert len(steps.skipped) == 1


def test_a_bad_gradient_names_its_layer() -> None:
    steps = NonFiniteSteps(1, lambda message: None)
    steps.after_batch(_trainer(), _model(float("inf")), FINE, None)
    assert steps.skipped == [{"step": 5, "kind": "gradient", "layer": "1"}]
    assert steps.unmeasured(5) == {"grad_norm": None}
    with pytest.raises(TrainingError, match="gradient of step 5.*2 such steps"):
        steps.after_batch(_trainer(), _model(float("inf")), FINE, None)


def test_an_overflow_of_scaled_gradients_is_left_to_the_scaler() -> None:
    steps, model = NonFiniteSteps(0, print), _model(float("inf"))
    steps.after_batch(_trainer(scaler=object()), model, FINE, None)
    assert steps.skipped == [] and all(parameter.grad is not None for parameter in model.parameters())
