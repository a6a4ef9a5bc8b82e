"""Our configurations in PEFT's own benchmarks: trained by PEFT's runner on this library's layers, then rewound.

    git clone https://github.com/huggingface/peft
    python benchmarks/peft_method_comparison/run.py peft

The runner is the checkout's ``method_comparison/<benchmark>/run.py``, unchanged; its results lie where the runner
writes those of a branch, in ``temporary_results``. This script writes the adapter beside them, and what the adapter
gains and forgets at smaller strengths.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
BENCHMARKS = ("MetaMathQA", "image-gen")
METHOD = "oft"
#: What the process of one experiment ends with where no other experiment could begin either.
NOT_READY = 2
#: In ``adapters/<name>`` of the checkout's benchmark: the adapter, the adapter at the chosen strengths, the figures;
#: and the traceback of a call that failed.
TRAINED, REWOUND, FIGURES, ERROR = "as-trained", "rewound", "strengths.json", "error.txt"
#: Rows of each domain by which a strength of a language model is chosen, and tokens of a text that the base writes.
ROWS, LENGTH = 64, 256
#: Strengths at which images are measured, and what is drawn to choose one; the benchmark's own prompts only measure.
STRENGTHS = (0.4, 0.55, 0.7, 0.85, 1.0)
UNRELATED_PROMPTS = [
    "a photo of a bicycle leaning against a brick wall",
    "a watercolor painting of a harbour with three sailing boats",
    "a bowl of oranges on a wooden table",
    "a photo of a kitten asleep on a windowsill",
    "a lighthouse on a cliff in a storm",
    "a steam train that crosses a stone bridge",
]


class _Trained(Exception):
    """Leaves PEFT's runner where an earlier call has trained the adapter already."""


def main() -> None:
    """Copy the configurations into a checkout of PEFT and run those whose figures are missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkout", type=Path, help="a clone of PEFT's repository")
    parser.add_argument("--benchmark", choices=BENCHMARKS, help="one of the two; both without this option")
    parser.add_argument("--only", metavar="EXPERIMENT", help="one experiment")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    chosen = (asked.benchmark,) if asked.benchmark else BENCHMARKS
    folders = {benchmark: benchmark_folder(asked.checkout, benchmark) for benchmark in chosen}
    if asked.one:
        run_one(folders[asked.benchmark], asked.one)
        return
    names = {benchmark: experiments(benchmark) for benchmark in chosen}
    if asked.only:
        known = [name for own in names.values() for name in own]
        names = {benchmark: [name for name in own if name == asked.only] for benchmark, own in names.items()}
        if asked.only not in known:
            sys.exit(f"--only {asked.only}: no such experiment; there are {', '.join(known)}.")
    for benchmark, own in names.items():
        for name in own:
            parts = ("experiments", METHOD, name)
            copy_experiment(HERE.joinpath(benchmark, *parts), folders[benchmark].joinpath(*parts))
    failed = []
    for benchmark, own in names.items():
        for name in own:
            if (folders[benchmark] / "adapters" / name / FIGURES).is_file():
                print(f"{benchmark} {name}: finished already")
                continue
            # A process for each: the runner wants the memory of the GPU for itself.
            command = [sys.executable, __file__, str(asked.checkout), "--benchmark", benchmark, "--one", name]
            try:
                code = subprocess.run(command, check=False).returncode
            except KeyboardInterrupt:
                sys.exit(f"{benchmark} {name}: interrupted. The same command goes on with this experiment.")
            if code == NOT_READY:
                sys.exit(NOT_READY)
            if code < 0:
                print(f"{benchmark} {name}: the system ended the process with signal {-code}", file=sys.stderr)
            if code:
                failed.append(f"{benchmark} {name}")
    if failed:
        sys.exit(f"not finished: {', '.join(failed)}. The lines above say why; the same command tries again.")


def benchmark_folder(checkout: Path, benchmark: str) -> Path:
    """The folder of a benchmark in a checkout of PEFT; the process ends with a message if there is none."""
    folder = checkout.resolve() / "method_comparison" / benchmark
    if not (folder / "run.py").is_file():
        sys.exit(f"{checkout}: no method_comparison/{benchmark}/run.py in it. Name a clone of PEFT's repository.")
    return folder


def experiments(benchmark: str) -> list[str]:
    """The names of our experiments in a benchmark."""
    return sorted(path.name for path in (HERE / benchmark / "experiments" / METHOD).iterdir() if path.is_dir())


def copy_experiment(source: Path, target: Path) -> None:
    """Copy the files of an experiment; a folder of that name with other files is left alone, and told."""

    def files(folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}

    if target.is_dir() and files(target) != files(source):
        sys.exit(f"{target} holds other files than {source}. Move it away, then start again.")
    if not target.is_dir():
        shutil.copytree(source, target)


def run_one(folder: Path, name: str) -> None:
    """Run one experiment by PEFT's runner in this process, with this library's layers for ``peft_type`` OFT.

    An adapter that an earlier call has trained is not trained again.

    Args:
        folder: ``method_comparison/<benchmark>`` of the checkout.
        name: of the experiment.
    """
    out = folder / "adapters" / name
    out.mkdir(parents=True, exist_ok=True)
    for results in ("temporary_results", *(["sample-images/temporary_results"] if folder.name == "image-gen" else [])):
        (folder / results).mkdir(parents=True, exist_ok=True)  # the runner does not make them
    with failure_in_one_line(f"{folder.name} {name}: PEFT's runner does not start", out, NOT_READY):
        import orthotune

        orthotune.register()
        runner = imported_runner(folder)
    with failure_in_one_line(f"{folder.name} {name}", out):
        kept = trained(runner, folder, name, out / TRAINED)
        found, strengths = (rewound_images if "pipeline" in kept else rewound_texts)(runner, kept, out)
        write_rewound(out / TRAINED, strengths, out / REWOUND)
        text = json.dumps(found, indent=2) + "\n"
        (out / FIGURES).write_text(text, encoding="utf-8")
    (out / ERROR).unlink(missing_ok=True)  # of an earlier call
    print(text, end="")


def write_rewound(adapter: Path, strengths: dict[str, float], out: Path) -> None:
    """Write an adapter at strengths; stock PEFT reads the result as it reads the adapter."""
    import orthotune

    orthotune.rewind(adapter, strengths, out, overwrite=True)


@contextmanager
def failure_in_one_line(what: str, out: Path, code: int = 1) -> Iterator[None]:
    """End the process with one line where the block fails; the traceback goes into ``error.txt`` of ``out``."""
    try:
        yield
    except Exception as fault:
        path = out / ERROR
        path.write_text(traceback.format_exc(), encoding="utf-8")
        message = str(fault).strip().partition("\n")[0]
        print(f"{what}: {type(fault).__name__}: {message} (all of it in {path})", file=sys.stderr)
        sys.exit(code)


def imported_runner(folder: Path) -> Any:
    """PEFT's ``run.py`` as a module; its imports need its own folder first in the path, and as working directory."""
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    runner: Any = importlib.import_module("run")

    def print_verbose(*words: object, **_: object) -> None:
        print(*words, file=sys.stderr)

    runner.print_verbose = print_verbose  # defined only where the runner is started as a script
    # A result of these layers is none of PEFT's main branch, whatever the checkout is on.
    for module in (runner, sys.modules["utils"]):
        vars(module)["get_peft_branch"] = lambda: "orthotune"
    return runner


def trained(runner: Any, folder: Path, name: str, adapter: Path) -> dict[str, Any]:
    """Train by PEFT's runner, or read the adapter that an earlier call has trained.

    Args:
        runner: PEFT's ``run.py``.
        folder: of the benchmark.
        name: of the experiment.
        adapter: folder of the trained adapter; it appears when the runner has written its results.

    Returns:
        The arguments of the runner's ``train``, and the adapted model as ``adapter``, in evaluation mode.
    """
    from peft import load_peft_weights, set_peft_model_state_dict

    kept: dict[str, Any] = {}
    train, partial = runner.train, adapter.with_name(f".{adapter.name}.partial")

    def model() -> Any:
        return kept["pipeline"].transformer if "pipeline" in kept else kept["model"]

    def train_or_read(**options: Any) -> Any:
        kept.update(options)
        if adapter.is_dir():
            raise _Trained
        result = train(**options)
        if result.error_msg:
            raise RuntimeError(f"the training stopped with: {result.error_msg}")
        return result

    def saved_size(transformer: Any, **_: Any) -> int:
        # In the place of the runner's own, which before Python 3.12 fails and gives the size as 99999999.
        transformer.save_pretrained(str(partial))
        return (partial / "adapter_model.safetensors").stat().st_size

    runner.train, runner.get_file_size = train_or_read, saved_size
    wanted = {"path_experiment": f"experiments/{METHOD}/{name}", "experiment_name": f"{METHOD}/{name}", "clean": True}
    # What else a newer runner wants is about uploads, of which there are none.
    more = [key for key, one in inspect.signature(runner.main).parameters.items() if one.default is one.empty]
    shutil.rmtree(partial, ignore_errors=True)
    try:
        runner.main(**dict.fromkeys(more) | wanted)
        partial.rename(adapter)
    except _Trained:
        set_peft_model_state_dict(model(), load_peft_weights(str(adapter)))
        model().to(runner.infer_device())
    return kept | {"adapter": model().eval()}


def rewound_texts(runner: Any, kept: dict[str, Any], out: Path) -> tuple[dict[str, Any], dict[str, float]]:
    """Choose strengths on texts that neither trained nor test, and measure the benchmark's own figures at these.

    The texts of the target domain are rows of MetaMathQA that the run did not reach; those of the source domain are
    written by the base, as ``orthotune rewind`` does where nothing else is named.

    Args:
        runner: PEFT's ``run.py``.
        kept: see :func:`trained`.
        out: folder for the texts that the base writes.

    Returns:
        The strengths, with test accuracy and forgetting as trained, at one strength, and at one for attention and one
        for the MLP where both are adapted; and the last choice as layer -> strength.
    """
    from orthotune.metrics.text_loss import TokenRow
    from orthotune.runs.layer_strengths import layer_strengths
    from orthotune.runs.rewinding import groups_of
    from orthotune.text.rewinding import TextRewinding
    from orthotune.text.written_texts import read_texts, write_texts

    model, tokenizer = kept["adapter"], kept["tokenizer"]
    data, _, test = runner.get_train_valid_test_datasets(
        tokenizer=tokenizer, query_template=kept["query_template"], print_fn=runner.print_verbose
    )
    reached = kept["max_steps"] * kept["batch_size"]
    if reached + ROWS > len(data):
        raise RuntimeError(f"the training reached {reached} of {len(data)} rows; {ROWS} more are needed to choose by")
    held_out = [list(ids) for ids in data.select(range(len(data) - ROWS, len(data)))["input_ids"]]
    written = out / "old-texts.jsonl"
    write_texts(model, tokenizer, written, LENGTH, 0, ROWS)
    layers = layer_strengths(model)
    rewinding = TextRewinding(
        model, layers, {"new": [TokenRow(ids, ids) for ids in held_out], "old": read_texts(written)}
    )
    best = max(rewinding.curve(1.0), key=lambda point: point.worth(1.0)).strengths
    kinds = groups_of(layers.names, "kind")
    choices = {"as trained": {"all": 1.0}, "one strength": dict(best)}
    if len(set(kinds.values())) > 1:
        choices["by kind"] = rewinding.train(kinds, best["all"] or 0.5, 1.0)
    by_layer = {
        choice: {name: found.get(kinds[name], found.get("all", 1.0)) for name in layers.names}
        for choice, found in choices.items()
    }
    wiki = runner.get_wiki_small()

    def loss() -> float:
        return float(
            runner.calculate_mean_per_token_loss(
                model=model, tokenizer=tokenizer, rows=wiki, batch_size=kept["batch_size"], max_length=768
            )
        )

    with model.disable_adapter():
        before = loss()
    results = {}
    for choice, strengths in by_layer.items():
        layers.set(strengths)
        runner.set_seed(0)  # a model that samples its answers draws the same numbers for each choice
        predictions, responses = runner.evaluate(
            model=model, tokenizer=tokenizer, ds=test, batch_size=kept["batch_size_eval"],
            generate_kwargs={**kept["generation_kwargs"], "pad_token_id": tokenizer.eos_token_id},
            use_tqdm=len(test) > 100,
        )  # fmt: skip
        results[choice] = {
            "strengths": choices[choice],
            "test accuracy": runner.get_accuracy(predictions=predictions, responses=responses),
            "forgetting": loss() - before,
        }
    chosen = list(choices)[-1]
    return {"chosen": chosen, "results": results}, by_layer[chosen]


def rewound_images(runner: Any, kept: dict[str, Any], _: Path) -> tuple[dict[str, Any], dict[str, float]]:
    """Choose a strength by the validation images and drift on prompts of our own; measure the benchmark's figures.

    Args:
        runner: PEFT's ``run.py``.
        kept: see :func:`trained`.

    Returns:
        Strength -> what chose and what was measured, and the chosen strength; and that as layer -> strength.
    """
    from orthotune.runs.layer_strengths import layer_strengths

    config = kept["train_config"]
    layers = layer_strengths(kept["adapter"])
    _, validation, test = runner.get_train_valid_test_datasets(train_config=config, print_fn=runner.print_verbose)
    processor, encoder = runner.get_dino_encoder(config.dino_model_id, config.dino_image_size)
    common = {"pipeline": kept["pipeline"], "processor": processor, "dino_model": encoder}
    own = replace(config, drift_image_prompts=UNRELATED_PROMPTS)
    rows = {}
    for t in STRENGTHS:
        layers.set(dict.fromkeys(layers.names, t))
        rows[t] = {
            "valid dino_similarity": runner.evaluate(ds_eval=validation, config=config, **common),
            "drift of unrelated prompts": runner.measure_drift(config=own, **common),
            "test dino_similarity": runner.evaluate(ds_eval=test, num_repeats=3, config=config, **common),
            "drift": runner.measure_drift(config=config, **common),
        }
    best = max(rows, key=lambda t: rows[t]["valid dino_similarity"] - rows[t]["drift of unrelated prompts"])
    found = {"chosen": best, "results": {str(t): row for t, row in rows.items()}}
    return found, dict.fromkeys(layers.names, best)


if __name__ == "__main__":
    main()
