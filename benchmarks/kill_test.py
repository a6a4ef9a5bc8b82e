"""Kill a finetuning run with SIGKILL at random moments, resume it, and compare the results bit by bit.

    python benchmarks/kill_test.py --moments 20
    python benchmarks/kill_test.py --moments 20 --recipe subject

One process imports the libraries, and each run is a fork of it, so that a run takes seconds. A moment is either a time
or the n-th time that the run opens, renames or removes a file, so that some kills leave a checkpoint, the adapter or
the record half-written. After the kill the run is resumed, sometimes killed again, and then runs to its end. All
tensors of the adapter and all lines of the metrics, except seconds, must equal those of the uninterrupted run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / folder) for folder in ("src", ".", "tools/worlds", "worlds/src")]

Job = tuple[str, str]  # recipe, method
#: Events that the audit hook counts; CPython reports them before it executes the operation.
EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree")


@dataclass(frozen=True)
class Moment:
    """When a run is killed: after some seconds, or before its n-th file event; without either it is not killed."""

    seconds: float | None = None
    event: int | None = None


def run(folder: Path, output: Path, recipe: str, method: str) -> None:
    """A run of some seconds with 12 steps and a checkpoint every 3 steps: a small language model or a tiny UNet."""
    common: dict[str, Any] = {"method": method, "batch_size": 2, "steps": 12, "save_every": 3, "learning_rate": 1e-2}
    common |= {"output": output, "resume": "auto"}
    if recipe == "sft":
        from orthotune.recipes import sft
        from orthotune.recipes.settings import SFTSettings

        texts = {"data": str(folder / "new.jsonl"), "old_data": str(folder / "old.jsonl"), "packing": "wrapped"}
        more = {"model": str(folder / "model"), "max_length": 32, "eval_every": 4, "dtype": "float32"}
        sft.run(SFTSettings(**common, **texts, **more), bar=False)
        return
    from orthotune.recipes import subject
    from orthotune.recipes.subject_settings import SubjectSettings

    words = {"instance_prompt": "a sks digit", "class_prompt": "a digit", "sample_prompts": ["a red sks digit"]}
    sizes = {"class_count": 3, "class_steps": 2, "sample_steps": 2, "sample_every": 6, "ema": 0.5}
    sizes |= {} if method == "full" else {"block_size": 4}
    images = {"model": str(folder / "unet"), "instance_images": str(folder / "images")}
    subject.run(SubjectSettings(**common, **words, **sizes, **images), bar=False)


def attempt(folder: Path, output: Path, job: Job, moment: Moment, log: Path) -> bool:
    """Start or resume the run in ``output``; returns whether it ended."""
    child = os.fork()
    if child == 0:
        _child(folder, output, job, moment, log)
    if moment.seconds is not None:
        time.sleep(moment.seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return False
    if status:
        raise SystemExit(f"a run failed instead of being killed:\n{log.read_text()}")
    return True


def _child(folder: Path, output: Path, job: Job, moment: Moment, log: Path) -> None:
    try:
        place = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(place, 1)
        os.dup2(place, 2)
        seen = 0

        def watch(name: str, details: tuple[Any, ...]) -> None:
            nonlocal seen
            if name in EVENTS and str(output) in str(details[0]):
                seen += 1
                if seen == moment.event:
                    os.kill(os.getpid(), signal.SIGKILL)

        if moment.event is not None:
            sys.addaudithook(watch)
        run(folder, output, *job)
        os._exit(0)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)


def result(output: Path) -> dict[str, Any]:
    """The result of a run: the bytes of all tensors, and the metrics without seconds."""
    from safetensors.numpy import load_file

    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    kept = next(path for path in (output / "adapter", output / "model") if path.is_dir())
    tensors = load_file(next(kept.glob("*.safetensors")))
    hidden = [path.name for path in [*output.iterdir(), *(output / "checkpoints").iterdir()] if path.name[0] == "."]
    return {
        "tensors": {name: (tensor.shape, tensor.tobytes()) for name, tensor in tensors.items()},
        "lines": [{key: value for key, value in line.items() if key != "seconds"} for line in lines],
        "left over": hidden,
    }


def prepare(folder: Path, recipe: str) -> None:
    """Write the model and the data, and import the libraries."""
    import matplotlib.figure  # noqa: F401
    import torch

    from orthotune.runs.quiet import quiet

    torch.set_num_threads(1)  # a pool of threads does not survive a fork
    if recipe == "subject":
        from orthotune.recipes import subject  # noqa: F401
        from orthotune.worlds.image_folders import write_subject
        from tests.support.tiny_pipelines import save_tiny

        save_tiny("sd15", folder / "unet")
        write_subject(folder / "images")
        return
    import trl  # noqa: F401

    from orthotune.recipes import sft  # noqa: F401
    from tests.support.tiny_text import save_model, texts, write_jsonl

    with quiet():
        save_model(folder / "model", dtype="float32")
    write_jsonl(folder / "new.jsonl", texts(6, "blue"))
    write_jsonl(folder / "old.jsonl", texts(2, "RED-"))


def trial(folder: Path, number: int, job: Job, expected: Any, seconds: float, events: int, seed: int) -> Any:
    """One run that is killed once or twice: when, and whether its result equals that of the uninterrupted run."""
    rng, output = random.Random(f"{seed}-{number}"), folder / f"run-{number}"
    kills: list[str] = []
    for _ in range(rng.randint(1, 2)):
        by_clock = number % 2 == 0
        moment = Moment(seconds=rng.uniform(0, seconds)) if by_clock else Moment(event=rng.randint(1, events))
        if attempt(folder, output, job, moment, folder / "log"):
            if kills:
                break
            shutil.rmtree(output)  # the run was faster than the moment: an earlier one
            attempt(folder, output, job, Moment(seconds=seconds / 2), folder / "log")
        state = sorted(path.name for path in (output / "checkpoints").glob("*")) if output.is_dir() else []
        kills.append(f"{moment.seconds:.2f} s" if by_clock else f"file event {moment.event}")
        kills[-1] += f", leaving {' '.join(state) or 'no checkpoint'}"
    attempt(folder, output, job, Moment(), folder / "log")
    return {"killed": kills, "same": result(output) == expected}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--method", default="oft", choices=["oft", "coft", "lora", "full"])
    parser.add_argument("--recipe", default="sft", choices=["sft", "subject"])
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    chosen = parser.parse_args()
    job = (chosen.recipe, chosen.method)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        prepare(folder, chosen.recipe)
        began = time.monotonic()
        events = _count_events(folder, folder / "uninterrupted", job)
        seconds = time.monotonic() - began
        expected = result(folder / "uninterrupted")
        print(f"uninterrupted: {seconds:.1f} s, {events} file events, {len(expected['tensors'])} tensors", flush=True)
        rows = []
        for number in range(chosen.moments):
            rows.append(trial(folder, number, job, expected, seconds, events, chosen.seed))
            outcome = "same" if rows[-1]["same"] else "DIFFERENT"
            print(f"{number + 1}: {outcome}; {'; '.join(rows[-1]['killed'])}", flush=True)
    same = sum(row["same"] for row in rows)
    killed = sum(len(row["killed"]) for row in rows)
    print(f"{same} of {len(rows)} runs, killed {killed} times, ended with the same bits", flush=True)
    if chosen.out:
        chosen.out.write_text(
            json.dumps({"recipe": chosen.recipe, "method": chosen.method, "seed": chosen.seed, "runs": rows}, indent=1)
            + "\n"
        )
    raise SystemExit(0 if same == len(rows) else 1)


def _count_events(folder: Path, output: Path, job: Job) -> int:
    """The number of file events of an uninterrupted run."""
    counter = folder / "events"
    child = os.fork()
    if child == 0:
        seen = 0

        def watch(name: str, details: tuple[Any, ...]) -> None:
            nonlocal seen
            seen += name in EVENTS and str(output) in str(details[0])

        sys.addaudithook(watch)
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            run(folder, output, *job)
            counter.write_text(str(seen))
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
    if os.waitpid(child, 0)[1]:
        raise SystemExit("the uninterrupted run failed, see above")
    return int(counter.read_text())


if __name__ == "__main__":
    main()
