from __future__ import annotations

import torch

from orthotune.runs.record import LIBRARIES, RunRecord, device_name, versions


def test_versions_name_every_library() -> None:
    found = versions()
    assert set(found) == {"python", *LIBRARIES}
    assert found["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert device_name()


def test_a_record_is_read_back_as_it_was_written() -> None:
    record = RunRecord(
        recipe="sft",
        method="oft",
        settings={"steps": 3},
        versions=versions(),
        device="cpu",
        trainable_parameters=2,
        total_parameters=5,
        steps=3,
        gain=0.5,
        seconds=2.0,
        train_seconds=1.0,
        artifacts={"adapter": "adapter"},
    )
    assert RunRecord.model_validate_json(record.model_dump_json()) == record
    assert record.forgetting is None and record.weights.energy_change is None
