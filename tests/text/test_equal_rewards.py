"""Steps without a difference between rewards are counted over a complete run, also across a stop."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from transformers import TrainerControl, TrainerState, TrainingArguments

from orthotune.text.equal_rewards import ENTRY, STEPS, EqualRewards


def test_a_run_that_goes_on_counts_the_steps_before_the_stop(tmp_path: Path) -> None:
    told: list[str] = []
    notes: list[str] = []
    args, control = TrainingArguments(output_dir=str(tmp_path), use_cpu=True), TrainerControl()

    def steps(state: TrainerState, shares: list[float]) -> EqualRewards:
        watch = EqualRewards(told.append, notes, SimpleNamespace())
        for share in shares:
            logs = {ENTRY: share, "reward": 0.5}
            state.log_history.append(logs)  # transformers does so before it calls on_log
            watch.on_log(args, state, control, logs=logs)
        return watch

    state = TrainerState()
    steps(state, [1.0] * (STEPS - 4))
    assert not told
    state.save_to_json(str(tmp_path / "state.json"))
    later = TrainerState.load_from_json(str(tmp_path / "state.json"))
    watch = steps(later, [1.0] * 4 + [0.5])
    assert len(told) == 1 and told[0].startswith(f"In the first {STEPS} steps")
    watch.on_train_end(args, later, control)
    assert notes[0].startswith(f"{STEPS} of {STEPS + 1} steps had equal rewards")
