"""The comparisons, one entry each: what the command line knows of them before anything heavy is imported.

A new comparison is a class of :class:`~orthotune.experiments.task.Task`, and an entry here.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orthotune.experiments.task import Task


@dataclass(frozen=True)
class Comparison:
    """One comparison.

    Args:
        name: what the command line calls it.
        place: ``module:Class`` of its task, below ``orthotune.experiments``.
        summary: the paragraphs under ``orthotune compare NAME --help``.
        examples: command lines, without ``orthotune compare``.
    """

    name: str
    place: str
    summary: str
    examples: tuple[str, ...]

    def task(self) -> Task:
        """The task, imported now.

        Example:
            >>> COMPARISONS["control"].task().name
            'control'
        """
        module, _, name = self.place.partition(":")
        made: Task = getattr(import_module(f"orthotune.experiments.{module}"), name)()
        return made


RESUMED = "Finished runs are kept: after an interruption, the same command continues."
#: By name, in the order of ``orthotune compare --help``.
COMPARISONS: dict[str, Comparison] = {
    one.name: one
    for one in (
        Comparison(
            "sft", "text_task:SFTTask",
            f"Finetune by OFT, COFT, LoRA of equal size and in full, at three learning rates each.\n\n{RESUMED}",
            ("sft", "sft methods=[oft,lora] seeds=[0,1] steps=100 --parallel 2"),
        ),
        Comparison(
            "subject", "image_tasks:SubjectTask",
            "Teach the built-in image model a subject by OFT, COFT, OFT with magnitudes, LoRA of equal size and in "
            "full.\n\nEach method runs at five learning rates; the best rate on the validation split runs again with "
            f"three seeds, and these runs are scored on the test split. {RESUMED}",
            ("subject", "subject methods=[oft,lora] seeds=[0,1] steps=100 --parallel 2"),
        ),
        Comparison(
            "control", "image_tasks:ControlTask",
            "Teach the built-in image model to follow control images by each method, as `compare subject` does.",
            ("control", "control signal=canny steps=800 learning_rates='{oft: [0.001, 0.002]}'"),
        ),
    )
}  # fmt: skip
