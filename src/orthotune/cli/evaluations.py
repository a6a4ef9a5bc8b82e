"""The evaluations, one entry each: the module that does it, its help and its options.

A new evaluation is an entry here, and a function that takes the options by name, or a measure of
``orthotune.metrics.registry``. Nothing heavy is imported before an evaluation is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import typer

Parameter = tuple[type, Any]


class Conditions(str, Enum):
    """The two kinds of conditions of ``evaluate canny``."""

    EDGES = "edges"
    PHOTOS = "photos"


@dataclass(frozen=True)
class Evaluation:
    """One evaluation.

    Args:
        name: what the command line calls it.
        place: ``module:function`` below ``orthotune.cli``. Empty for a measure of that name in the registry of
            measures, which reads folders of images and writes its figures to ``--out``.
        summary: the sentence under ``orthotune evaluate NAME --help``.
        examples: command lines, without ``orthotune evaluate``.
        parameters: the arguments and options by name, each its type and what typer knows of it.
    """

    name: str
    place: str
    summary: str
    examples: tuple[str, ...]
    parameters: Mapping[str, Parameter]

    def function(self) -> Callable[..., None]:
        """What is called with the values of the parameters; its module is imported now.

        Example:
            >>> EVALUATIONS["drift"].function().__module__
            'orthotune.cli.evaluate_drift'
        """
        if not self.place:
            from orthotune.cli.evaluation import run_measure

            return partial(run_measure, self.name)
        module, _, name = self.place.partition(":")
        found: Callable[..., None] = getattr(import_module(f"orthotune.cli.{module}"), name)
        return found


def _argument(text: str) -> Parameter:
    return Path, typer.Argument(help=text)


def _option(kind: type, default: Any, text: str, *flags: str, **limits: Any) -> Parameter:
    return kind, typer.Option(default, *flags, help=text, **limits)


def _flag(name: str, text: str) -> Parameter:
    return _option(bool, False, text, name)


def _parts(value: str) -> list[str]:
    return [name.strip() for name in value.split(",") if name.strip()]


RESULTS = _argument("Folder of generated images.")
MANIFEST = _option(
    Path, None, "JSON Lines or CSV: result, condition, prompt, subject. Default: RESULTS/manifest.jsonl."
)
RESIZE = _flag("--resize", "Resize results of another size than their conditions instead of refusing them.")
BATCH = _option(int, 8, "Images per batch.", min=1)
DEVICE = _option(str, "cpu", "Device of the model: cpu, cuda, mps, ...")
STRICT = _flag("--strict", "Refuse missing and unreadable files instead of counting them.")
OVERWRITE = _flag("--overwrite", "Replace what is at --out.")
WRITTEN: dict[str, Parameter] = {
    "out": _option(Path, None, "Output folder. Default: runs/evaluate-MEASURE.", "--out", "--output", "-o"),
    "overwrite": OVERWRITE,
}
JSON = _flag("--json", "Print one JSON object.")

#: By name, in the order of ``orthotune evaluate --help``.
EVALUATIONS: dict[str, Evaluation] = {
    one.name: one
    for one in (
        Evaluation(
            "canny", "",
            "IoU, accuracy and F1 between the edges of conditions and the Canny edges of results.",
            ("canny results edges",),
            {
                "results": RESULTS,
                "conditions": _argument("Folder of edge maps, white on black, with the names of the results."),
                "manifest": MANIFEST,
                "conditions_are": _option(
                    Conditions, Conditions.EDGES, "Kind of conditions; photos: their edges are computed first."
                ),
                "low": _option(float, 100, "Lower threshold of Canny, 0 to 255.", min=0),
                "high": _option(float, 200, "Upper threshold of Canny, 0 to 255.", min=0),
                "resize": RESIZE, "strict": STRICT, **WRITTEN,
            },
        ),
        Evaluation(
            "segmentation", "",
            "Compute mIoU, mAcc and aAcc between the given maps and a segmentation model's maps of the results.",
            ("segmentation results maps --device cuda",),
            {
                "results": RESULTS,
                "conditions": _argument("Folder of maps of class numbers, with the names of the results."),
                "manifest": MANIFEST,
                "maps": _option(Path, None, "Folder of the results' class maps, instead of running a model."),
                "model": _option(str, None, "Segmentation model: path or hub name. Default: SegFormer B0 on ADE20K."),
                "classes": _option(int, None, "Number of classes. Default: the model's.", min=1),
                "ignored": _option(int, 255, "Class number of the conditions that is ignored."),
                "reduce_labels": _flag("--reduce-labels", "Ignore class 0 and lower the other class numbers by one."),
                "batch_size": BATCH, "device": DEVICE, "resize": RESIZE, "strict": STRICT, **WRITTEN,
            },
        ),
        Evaluation(
            "landmarks", "",
            "Measure the mean distance in pixels between the wanted and the detected points of faces.",
            ("landmarks results points.json",),
            {
                "results": RESULTS,
                "conditions": _argument('JSON {"name": [[x, y], ...]}, or a folder of photographs.'),
                "manifest": MANIFEST,
                "found": _option(Path, None, "JSON of the results' points, instead of running a detector."),
                "detect": _option(str, "face-alignment", "face-alignment, or package.module:function.", "--detector"),
                "points": _option(int, 68, "Number of points of a face.", min=1),
                "device": DEVICE, "strict": STRICT, **WRITTEN,
            },
        ),
        Evaluation(
            "subject", "",
            "Measure fidelity to a subject (DINO, CLIP-I) and to prompts (CLIP-T), and diversity (LPIPS).",
            ('subject results photos --prompt "a photo of a sks dog"',),
            {
                "results": RESULTS,
                "references": _argument(
                    "Folder of photographs; if the manifest names subjects, one folder inside it for each."
                ),
                "manifest": MANIFEST,
                "prompt": _option(str, None, "Prompt of the results for which the manifest has none."),
                "measures": _option(str, "dino,clip-i,clip-t,lpips", "Measures, separated by commas.", callback=_parts),
                "dino": _option(str, None, "DINO model: path or hub name. Default: DINO ViT-S/16."),
                "clip": _option(str, None, "CLIP model: path or hub name. Default: CLIP ViT-B/32."),
                "lpips": _option(str, "alex", "Network of LPIPS: alex, vgg or squeeze."),
                "batch_size": BATCH, "device": DEVICE, "strict": STRICT, **WRITTEN,
            },
        ),
        Evaluation(
            "fid", "",
            "Compute the Fréchet inception distance between results and real images; it needs thousands of images.",
            ("fid results real",),
            {
                "results": RESULTS,
                "references": _argument("Folder of real images."),
                "model": _option(str, "inception", "inception, or the path or hub name of a vision model."),
                "weights": _option(Path, None, "File with the weights of inception, instead of a download."),
                "batch_size": BATCH, "device": DEVICE, "strict": STRICT, **WRITTEN,
            },
        ),
        Evaluation(
            "energy", "evaluate_weights:energy",
            "Compare the hyperspherical energy of each linear layer, and of all together, before and after finetuning.",
            ("energy runs/demo/adapter",),
            {
                "tuned": _argument("Adapter, or the folder of a fully finetuned model."),
                "base": _option(
                    str, None, "Base model: path or hub name. Default: the one that the adapter records.",
                    "--base", "-b",
                ),
                "s": _option(float, 1.0, "Exponent s of the energy; usually 0, 1 or 2.", "--power", min=0),
                "half_space": _flag("--half-space", "Treat a neuron and its negative as the same direction."),
                "out": _option(Path, None, "Output folder. Default: runs/evaluate-energy.", "--out", "--output", "-o"),
                "overwrite": OVERWRITE,
            },
        ),
        Evaluation(
            "drift", "evaluate_drift:drift",
            "Measure how far an adapter changes the outputs on data that are not about its task: next tokens, or "
            "images.",
            ("drift runs/demo/adapter",
             "drift style.safetensors --base models/sdxl --data prompts.txt --model facebook/dino-vits16"),
            {
                "adapter": _argument("Adapter of a causal language model or of a diffusers pipeline, any format."),
                "data": _option(
                    str, None,
                    "Data not related to the task. Language models: a file, a folder, a hub name, or text-world/SPLIT. "
                    "Image models: a text file with one prompt per line. The built-in models have a default.",
                ),
                "base": _option(str, None, "Base model. Default: the one that the adapter records."),
                "max_length": _option(int, 512, "Language models: tokens per sequence.", min=2),
                "limit": _option(int, 200, "Number of texts or prompts, taken from the beginning.", min=1),
                "seed": _option(
                    int, 0, "Image models: seed of the first image; each further image takes the next number.", min=0
                ),
                "steps": _option(int, 20, "Image models: sampling steps.", min=1),
                "guidance": _option(float, None, "Image models: guidance scale. Default: the pipeline's own."),
                "model": _option(
                    str, None, "Image models: vision model whose features are compared. Default: built-in classifier."
                ),
                "as_json": JSON,
            },
        ),
        Evaluation(
            "forgetting", "evaluate_forgetting:forgetting",
            "Disable the parts of a run's adapter one after the other, and measure how gain and forgetting change.",
            ("forgetting runs/sft-oft",),
            {"run": _argument("Run directory of a finished `orthotune train sft` with an adapter."), "as_json": JSON},
        ),
        Evaluation(
            "answers", "evaluate_answers:answers",
            "Ask a chat model short questions with exact answers: facts, arithmetic, instructions; before and after "
            "training.",
            ("answers smollm2", "answers smollm2 --adapter style.safetensors", "answers runs/sft-oft --json"),
            {
                "model": (
                    str, typer.Argument(help="Base model: path, hub name, text-world or smollm2; or a run directory.")
                ),
                "adapter": _option(
                    Path, None, "Adapter of the base, of any format. A run directory brings its own.", "--adapter", "-a"
                ),
                "questions": _option(
                    Path, None, "JSON Lines: question, kind, answers. Default: 120 questions of the package."
                ),
                "strength": _option(float, 1.0, "Strength of what was trained: 0 is the base."),
                "as_json": JSON,
            },
        ),
        Evaluation(
            "changes", "evaluate_changes:changes",
            "Measure what a run changed in predictions and in the activations of every layer, on either domain.",
            ("changes runs/sft-oft",),
            {
                "run": _argument("Run directory of a finished `orthotune train sft`."),
                "tokens": _option(int, 1024, "Held-out tokens of either domain.", min=64),
                "as_json": JSON,
            },
        ),
    )
}  # fmt: skip
