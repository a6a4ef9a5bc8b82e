"""What each of two processes does: finetuning runs, sharded models by hand, an image run. Started by torchrun.

Everything is in one launch because starting a process costs more than all that it does.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from orthotune.recipes import sft, subject
from orthotune.runs.processes import leave
from tests.distributed.jobs import JOBS, KEEPING, STOPPING, pictures_of, settings_of


class _Accident(TrainerCallback):
    def on_step_begin(self, args: Any, state: Any, control: Any, **seen: Any) -> None:
        if state.global_step == 4:
            raise RuntimeError("an accident in every process")


def finetune(home: Path) -> None:
    for name in [*JOBS, *KEEPING, *STOPPING]:
        if name in ("none", "keep"):
            continue
        said: list[str] = []
        if name == "resumed":
            settings = settings_of(home, name)
            with suppress(RuntimeError):
                sft.run(settings, say=said.append, callbacks=[_Accident()], bar=False)
            settings = settings.model_copy(update={"resume": "auto"})
        else:
            settings = settings_of(home, name)
        record = sft.run(settings, say=said.append, bar=False)
        told = {"said": said, "steps": record.steps, "drift": record.drift, "weights": record.weights.model_dump()}
        (home / f"{name}-{os.environ['RANK']}.json").write_text(json.dumps(told))


def draw(home: Path) -> None:
    said: list[str] = []
    record = subject.run(pictures_of(home, "pictures-2", processes=2), say=said.append, bar=False)
    told = {"said": said, "steps": record.steps, "weights": record.weights.model_dump()}
    (home / f"pictures-2-{os.environ['RANK']}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    from tests.distributed.by_hand import shard_by_hand

    home = Path(sys.argv[1])
    warnings.simplefilter("ignore")
    finetune(home)
    found = shard_by_hand()
    (home / f"by-hand-{os.environ['RANK']}.json").write_text(json.dumps(found))
    draw(home)
    leave()
    sys.stdout.flush()
    os._exit(0)  # what Python takes down at its end takes a second
