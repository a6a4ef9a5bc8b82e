"""The comparison of finetuning runs of a language model: gain on the target domain, forgetting on the source domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, model_validator

from orthotune.experiments.axes import Axes, Axis, Row
from orthotune.experiments.forecast import forecast
from orthotune.experiments.settings import CompareSettings
from orthotune.experiments.strengths import Again, measure
from orthotune.experiments.task import Finished, Say, Table, Task
from orthotune.recipes import sft
from orthotune.recipes.settings import WORLD, SettingError, SFTSettings
from orthotune.runs.record import RunRecord

#: Columns of the table on the terminal, and their headings.
COLUMNS = {
    "method": "method",
    "learning_rate": "lr",
    "seed": "seed",
    "trainable_parameters": "trainable",
    "gain": "gain",
    "forgetting": "forgetting",
    "orthogonality_error": "‖RRᵀ-I‖",
    "energy_change": "energy change",
    "train_seconds": "seconds",
}
#: Columns that are measured at the end of a run, at strength 1.
AT_THE_END = ("drift", "orthogonality_error", "energy_change", "angle_change")
#: Held-out tokens of each text that a run measures where nothing else is given, unless the model is the built-in one:
#: on a real model a measurement of all of them takes longer than the training.
EVAL_TOKENS = 8192


class CompareSFTSettings(CompareSettings):
    """A grid of finetuning runs.

    Example:
        >>> CompareSFTSettings(methods=["oft"], sft={"steps": 10}).seeds
        [0]
    """

    inside: ClassVar[str] = "sft"

    test_data: str | None = Field(None, description="Held-out data of the target domain for the frontiers alone.")
    old_test_data: str | None = Field(None, description="The same of the source domain.")
    output: Path = Path("runs/compare-sft")
    sft: dict[str, Any] = Field({}, description="Settings of every run, as for `orthotune train sft`.")

    @model_validator(mode="after")
    def _both_or_neither(self) -> CompareSFTSettings:
        if bool(self.test_data) != bool(self.old_test_data):
            lacking = "old_test_data" if self.test_data else "test_data"
            raise SettingError(lacking, f"no {lacking} beside the other one", "Name both, or neither")
        return self


class SFTTask(Task):
    """`orthotune train sft` by several methods; nats per token."""

    name = "sft"
    grid = CompareSFTSettings
    runs = SFTSettings
    axes = Axes(
        Axis("gain", "gain on the target domain", "nats/token"),
        Axis("forgetting", "forgetting on the source domain", "nats/token", larger_is_better=False),
    )
    without_test_data = "No test_data and old_test_data"

    def run(self, settings: Any, say: Say = print, *, bar: bool = True) -> RunRecord:
        """Make one run, or read back a finished one."""
        if settings.sample_prompts is None:  # nobody reads the samples of single runs of a comparison
            settings = settings.model_copy(update={"sample_prompts": []})
        return sft.run(settings, say, bar=bar)

    def check(self, run: SFTSettings) -> None:
        """The plan of the run, which no memory is taken for."""
        sft.plan(run)

    def defaults(self, settings: Any, given: Mapping[str, Any], seed: int, *, first: bool) -> dict[str, Any]:
        """Held-out rows are measured before and after training alone, unless a rule goes by what is measured between.

        On a small model a measurement of all rows takes longer than the steps between two of them. Of other models than
        the built-in one some rows are measured, the same ones in every run; ``eval_tokens=null`` measures all.
        """
        run = self.runs(**given)
        between = run.stop_when or run.result != "last"
        found = {} if run.steps is None or between else {"eval_every": run.steps}
        return found if run.model == WORLD or run.eval_tokens else {**found, "eval_tokens": EVAL_TOKENS}

    def forecast(self, settings: CompareSFTSettings, runs: Sequence[SFTSettings]) -> list[str]:
        """How long the held-out rows of all runs will take, and of which points it is not known yet."""
        found = forecast(settings, list(runs))
        if found and self.test_data(settings, runs) is not None:
            found.append("Points that are chosen for the frontiers are measured once more, on the test data.")
        return found

    def row(self, record: RunRecord, folder: Path) -> Row:
        """Losses, their differences, what happened to the weights, and costs."""
        return {
            "trainable_parameters": record.trainable_parameters,
            "steps": record.steps,
            **record.model_dump(
                include={"gain", "forgetting", "drift", "new_before", "new_after", "old_before", "old_after"}
            ),
            **record.scores_after,
            **record.weights.model_dump(),
            "train_seconds": record.train_seconds,
            "seconds": record.seconds,
            "bytes": sum(path.stat().st_size for path in folder.glob("*/*.safetensors")),
        }

    def measure(self, finished: Finished, say: Say = print, *, bar: bool = True) -> dict[float, Row]:
        """Losses and their differences; of test data the differences alone."""
        new, old = finished.test_data or (None, None)
        file = "test.json" if finished.test_data else "strengths.json"
        losses = measure(
            Again(run=finished.run, strengths=finished.strengths, eval_data=new, old_data=old, file=file), say, bar=bar
        )
        rows = {strength: _compared(losses[0.0], losses[strength]) for strength in finished.strengths}
        if finished.test_data:
            return {t: {key: row[key] for key in ("gain", "forgetting")} for t, row in rows.items()}
        return rows

    def test_data(self, settings: CompareSFTSettings, runs: Sequence[SFTSettings]) -> tuple[str, str] | None:
        """Names of the data of both domains: as given, or those of the built-in texts where all runs train on them."""
        if settings.test_data and settings.old_test_data:
            return settings.test_data, settings.old_test_data
        own = (WORLD, f"{WORLD}/new_train", f"{WORLD}/old_validation")
        if all((one.model, one.data, one.old_data) == own for one in runs):
            return f"{WORLD}/new_test", f"{WORLD}/old_test"
        return None

    def point(self, row: Row, strength: float) -> Row:
        """All columns; what only the run itself measured is unknown at other strengths."""
        unknown = () if strength == 1 else (*AT_THE_END, *(key for key in row if key.startswith("answers")))
        return {**row, "strength": strength, **dict.fromkeys(unknown)}

    def table(self, rows: Sequence[Row]) -> Table:
        """One line per row, in the order of the grid."""
        title = "gain on the target domain, forgetting on the source domain, in nats/token"
        return Table(title, list(COLUMNS.values()), [[_cell(key, row[key]) for key in COLUMNS] for row in rows])


def _compared(base: dict[str, float], now: dict[str, float]) -> Row:
    return {
        "new_before": base.get("new"),
        "new_after": now.get("new"),
        "gain": base["new"] - now["new"] if "new" in now else None,
        "old_before": base.get("old"),
        "old_after": now.get("old"),
        "forgetting": now["old"] - base["old"] if "old" in now else None,
    }


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if key in ("gain", "forgetting"):
        return f"{value:+.3f}"
    if key in ("orthogonality_error", "energy_change"):
        return f"{value:.1e}"
    if key == "trainable_parameters":
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value)
