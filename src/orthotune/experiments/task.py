"""The job of a comparison: a :class:`Task` states its settings, its runs, how they are measured, and its axes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from orthotune.experiments.axes import Axes, Row
from orthotune.experiments.frontier import draw_frontier
from orthotune.experiments.settings import CompareSettings, settings_of
from orthotune.recipes.method_settings import MethodSettings
from orthotune.report import write_report

Say = Callable[[str], None]


@dataclass(frozen=True)
class Finished:
    """A finished run, and what to measure of it.

    Args:
        run: its settings; its results are in ``run.output``.
        strengths: of what was trained; 1 is as trained, 0 the base.
        test_data: what :meth:`Task.test_data` gave; None for the validation data.
    """

    run: Any
    strengths: list[float]
    test_data: Any = None


class Table(NamedTuple):
    """A table for the terminal, in plain text."""

    title: str
    head: list[str]
    lines: list[list[str]]


class Task(ABC):
    """One job that is run by several methods. Only the abstract methods and the class variables must be stated.

    A task is an object without state: other processes make their own.

    ``name`` is the verb and the ``recipe`` of ``comparison.json``, ``grid`` the class of the comparison's settings,
    ``runs`` that of a run's, ``axes`` the plane of the frontiers. Where a method's ``learning_rates`` are not given,
    they are the preset's times ``spread``.

    ``ranking`` names columns of the rows. If it is empty, every run is a point of its method's frontier. If not, the
    rate with the best means of these columns is chosen for each method first, its runs are tested, and they alone are
    points, in tables of their own.
    """

    name: ClassVar[str]
    grid: ClassVar[type[CompareSettings]]
    runs: ClassVar[type[MethodSettings]]
    axes: ClassVar[Axes]
    spread: ClassVar[tuple[float, ...]] = (0.4, 1.0, 2.5)
    ranking: ClassVar[tuple[str, ...]] = ()
    #: for the message that there are no test data
    without_test_data: ClassVar[str] = "No test data"

    @abstractmethod
    def run(self, settings: Any, say: Say = print, *, bar: bool = True) -> Any:
        """Make one run, or read back a finished one; the result is its record.

        Args:
            settings: of the run, of the class ``runs``.
            say: called with messages.
            bar: show a progress bar.
        """

    @abstractmethod
    def row(self, record: Any, folder: Path) -> Row:
        """The columns of a run besides its name, method, learning rate and seed, those of the axes among them.

        ``trainable_parameters`` and ``steps``, where they are columns, are compared between methods.

        Args:
            record: what :meth:`run` returned.
            folder: the run directory.
        """

    @abstractmethod
    def measure(self, finished: Finished, say: Say = print, *, bar: bool = True) -> dict[float, Row]:
        """Measure a finished run again: for each strength the columns that are new, those of the axes among them.

        What was measured before should be read from the run directory.

        Args:
            finished: the run, the strengths, and the test data or None.
            say: called with messages.
            bar: show a progress bar.
        """

    def test_data(self, settings: Any, runs: Sequence[Any]) -> Any | None:
        """The data on which the points that were chosen are measured, once; None if there are none.

        Args:
            settings: of the comparison.
            runs: the settings of all runs.
        """
        return None

    def settings_of(self, method: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of a method's runs without learning rate, seed and output.

        Args:
            method: one of the methods of the comparison.
            given: the settings of every run.
        """
        return settings_of(method, given, self.runs)

    def defaults(self, settings: Any, given: Mapping[str, Any], seed: int, *, first: bool) -> dict[str, Any]:
        """Settings of a run where ``given`` has no others.

        Args:
            settings: of the comparison.
            given: the settings of the method's runs.
            seed: of the run.
            first: whether the run is one of those at every learning rate.
        """
        return {}

    def check(self, run: Any) -> None:
        """Refuse a run whose model and layers do not allow its settings, as the run would after it has begun.

        Asked for one run of each method before the first one; nothing is trained or written.

        Args:
            run: the settings of the run.

        Raises:
            OrthotuneError: as the run itself would.
        """
        return  # a task of one's own need not know beforehand

    def forecast(self, settings: Any, runs: Sequence[Any]) -> list[str]:
        """What measuring the runs will cost, in sentences that are printed before the first one.

        Args:
            settings: of the comparison.
            runs: the settings of its runs.
        """
        return []

    def outcome(self, record: Any) -> str:
        """What is printed behind the name of a finished run."""
        return ""

    def base(self, folder: Path, say: Say) -> Row | None:
        """The row of the base model, the last one of the tables; None for no such row.

        Args:
            folder: of the comparison.
            say: called with messages.
        """
        return None

    def tested(self, run: Any, say: Say) -> Row:
        """Columns that the test data add to a run of the chosen learning rate, where ``ranking`` chooses one.

        Args:
            run: the settings of the run.
            say: called with messages.
        """
        return {}

    def point(self, row: Row, strength: float) -> Row:
        """The columns of a run that are also those of the run at a strength.

        Args:
            row: of the run.
            strength: at which it was measured.
        """
        return {**row, "strength": strength}

    def plane(self) -> dict[str, str]:
        """The columns of ``comparison.json`` that a report draws against each other, and the better corner."""
        return {"learned": self.axes.gain.column, "kept": self.axes.forgetting.column, "better": self.axes.better}

    def draw(self, rows: Sequence[Row], folder: Path) -> None:
        """Write ``frontier.png`` and whatever other drawings there are.

        Args:
            rows: of the comparison.
            folder: of the comparison.
        """
        draw_frontier(rows, folder / "frontier.png", self.axes)

    def page(self, settings: Mapping[str, Any], rows: Sequence[Row], summary: Mapping[str, Any], folder: Path) -> None:
        """Write ``report.html``.

        Args:
            settings: of the comparison, as in ``comparison.json``.
            rows: of the comparison.
            summary: as in ``comparison.json``.
            folder: of the comparison, with its records and drawings.
        """
        write_report(folder)

    def table(self, rows: Sequence[Row]) -> Table:
        """What is printed in the end: by default a line for each row.

        Args:
            rows: of the comparison.
        """
        names = ["run", self.axes.gain.column, self.axes.forgetting.column]
        lines = [["-" if row.get(key) is None else f"{row[key]:.4g}" for key in names[1:]] for row in rows]
        head = ["run", self.axes.gain.label, self.axes.forgetting.label]
        return Table(self.name, head, [[row["run"], *line] for row, line in zip(rows, lines, strict=True)])
