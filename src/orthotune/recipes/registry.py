"""The registry of recipes, for the command line, the presets and the fits of magnitudes.

A new recipe is a module with ``run(settings, say)`` (and ``plan(settings)``, for a dry run), a settings class, and an
entry here. The modules are imported when a recipe is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orthotune.recipes.method_settings import MethodSettings


@dataclass(frozen=True)
class Option:
    """A setting with its own option on the command line.

    Args:
        key: the setting.
        flag: the option.
        help: one sentence for ``--help``.
    """

    key: str
    flag: str
    help: str


@dataclass(frozen=True)
class Recipe:
    """One training job.

    Args:
        name: on the command line, in ``run.json`` and of the folder of presets.
        module: the module with ``run``, below ``orthotune.recipes``.
        settings: ``module:Class`` of the settings, below ``orthotune.recipes``.
        summary: the sentences under ``orthotune train NAME --help``.
        examples: command lines, without ``orthotune train``.
        options: settings with their own options, besides those that all recipes have.
        text: the recipe runs as those of language models do, on a trainer of transformers; other recipes report scores
            of images.
        head: the model has a head of its own, writes no texts, and is measured in scores.
        plans: the module has ``plan(settings)``, which describes a run.
        shows_data: the module has ``show_data(settings, marks)``, which gives examples as tokens, as lines to print.
    """

    name: str
    module: str
    settings: str
    summary: str
    examples: tuple[str, ...]
    options: tuple[Option, ...] = ()
    text: bool = False
    head: bool = False
    plans: bool = True
    shows_data: bool = False

    def job(self) -> Any:
        """The module that runs the recipe.

        Example:
            >>> RECIPES["sft"].job().__name__
            'orthotune.recipes.sft'
        """
        return import_module(f"orthotune.recipes.{self.module}")

    def settings_class(self) -> type[MethodSettings]:
        """The class of the recipe's settings.

        Example:
            >>> RECIPES["t2i"].settings_class().__name__
            'TextToImageSettings'
        """
        module, _, name = self.settings.partition(":")
        found: type[MethodSettings] = getattr(import_module(f"orthotune.recipes.{module}"), name)
        return found


#: By name, in the order of ``orthotune train --help``.
RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "sft", "sft", "settings:SFTSettings",
            "Finetune a language model. Without arguments: the small built-in model, on the texts beside it.",
            ("sft", "sft --method lora steps=100", "sft preset=llama model=meta-llama/Llama-3.2-1B data=notes.jsonl",
             "sft model=smollm2 data=chats.jsonl loss_on=answers --show-data"),
            text=True, shows_data=True,
        ),
        Recipe(
            "dpo", "dpo", "dpo:DPOSettings",
            "Learn from pairs of a chosen and a rejected answer (DPO). Without arguments: the small built-in model, on "
            "prose against lines of code.",
            ("dpo", "dpo model=Qwen/Qwen2.5-0.5B-Instruct data=pairs.jsonl beta=0.1", "dpo --method lora steps=100"),
            (Option("data", "--data", "File, folder or hub data set with prompt, chosen and rejected."),),
            text=True,
        ),
        Recipe(
            "kto", "kto", "kto:KTOSettings",
            "Learn from single answers that are wanted or not (KTO). Without arguments: the small built-in model, on "
            "prose against lines of code.",
            ("kto", "kto model=Qwen/Qwen2.5-0.5B-Instruct data=thumbs.jsonl desirable_weight=1.5"),
            (Option("data", "--data", "File, folder or hub data set with prompt, completion and label."),),
            text=True,
        ),
        Recipe(
            "orpo", "orpo", "orpo:ORPOSettings",
            "Learn chosen answers and prefer them to rejected ones in one loss (ORPO). Without arguments: the small "
            "built-in model, on prose against lines of code.",
            ("orpo", "orpo model=Qwen/Qwen2.5-0.5B data=pairs.jsonl beta=0.1"),
            (Option("data", "--data", "File, folder or hub data set with prompt, chosen and rejected."),),
            text=True,
        ),
        Recipe(
            "reward", "reward", "reward:RewardSettings",
            "Train a reward model, which gives an answer one number. Without arguments: the small built-in model, on "
            "prose against lines of code.",
            ("reward", "reward model=Qwen/Qwen2.5-0.5B-Instruct data=pairs.jsonl"),
            (Option("data", "--data", "File, folder or hub data set with prompt, chosen and rejected."),),
            text=True, plans=False,
        ),
        Recipe(
            "grpo", "grpo", "grpo:GRPOSettings",
            "Finetune a language model by rewards for its own answers (GRPO). Without arguments: names of attributes "
            "in Python methods, on the small built-in model.",
            ("grpo", "grpo data=sums.jsonl model=models/llama --reward number beta=0.04",
             "grpo data=tasks.jsonl model=models/llama --reward rewards.py:runs_without_error"),
            (Option("reward", "--reward", "exact, number, package.module.function or file.py:function."),),
            text=True,
        ),
        Recipe(
            "rloo", "rloo", "rloo:RLOOSettings",
            "Finetune a language model by rewards for its own answers (RLOO). Without arguments: names of attributes "
            "in Python methods, on the small built-in model.",
            ("rloo", "rloo data=sums.jsonl model=models/llama --reward number"),
            (Option("reward", "--reward", "exact, number, package.module.function or file.py:function."),),
            text=True,
        ),
        Recipe(
            "distill", "distill", "distill:DistillSettings",
            "Teach a language model, on its own answers, what it would answer with more context, or what a teacher "
            "would. Without arguments: Python methods, on the small built-in model.",
            ("distill", "distill data=tasks.jsonl model=models/llama divergence=forward",
             "distill data=prompts.jsonl model=models/small --teacher models/large"),
            (Option("teacher", "--teacher", "Another model; default: the model itself, its adapter switched off."),),
            text=True, plans=False,
        ),
        Recipe(
            "classify", "classify", "classify:ClassifySettings",
            "Finetune a classifier of texts: one class, several labels, or a number for each. Without arguments: the "
            "small built-in model, on passages about five Python packages.",
            ("classify", "classify --method lora steps=100",
             "classify model=FacebookAI/roberta-base --data reviews.csv target_modules=all-linear"),
            (Option("data", "--data", "Table with the columns text and label (and text2 for pairs)."),),
            text=True, head=True, plans=False,
        ),
        Recipe(
            "embed", "embed", "embed:EmbedSettings",
            "Finetune sentence embeddings on pairs, triplets or scored pairs. Without arguments: the small built-in "
            "model, on neighbouring passages.",
            ("embed", "embed --method lora steps=100",
             "embed model=sentence-transformers/all-MiniLM-L6-v2 --data questions.csv batch_size=64"),
            (Option("data", "--data", "Table with anchor, positive (and negative), or sentence1, sentence2 and score."),
             Option("loss", "--loss", "multiple-negatives, triplet, cosent, cosine, ...; default: by the columns.")),
            text=True, head=True, plans=False,
        ),
        Recipe(
            "tokens", "tokens", "tokens:TokensSettings",
            "Finetune a tagger of words: names, parts of speech. Without arguments: the small built-in model, on words "
            "of code in prose.",
            ("tokens", "tokens --method lora steps=100", "tokens model=FacebookAI/roberta-base --data names.jsonl"),
            (Option("data", "--data", "Table with the columns words and tags, lists of the same length."),),
            text=True, head=True, plans=False,
        ),
        Recipe(
            "speech", "speech", "speech:SpeechSettings",
            "Finetune a recognizer of speech, as Whisper. Without arguments: a tiny model without pretraining, on "
            "tones that stand for words.",
            ("speech", "speech --method lora steps=100",
             "speech model=openai/whisper-small --data recordings.csv language=french"),
            (Option("data", "--data", "Table with the columns audio (a path) and text."),
             Option("language", "--language", "Of the recordings, for a model of several languages.")),
            text=True, head=True, plans=False,
        ),
        Recipe(
            "vision", "vision", "vision:VisionSettings",
            "Finetune a classifier of images. Without arguments: a tiny vision transformer without pretraining, on "
            "the colours of digits.",
            ("vision", "vision --method lora steps=100",
             "vision model=google/vit-base-patch16-224 --data photos/"),
            (Option("data", "--data", "Folder with a subfolder for each class, or table with image and label."),),
            text=True, head=True, plans=False,
        ),
        Recipe(
            "vlm", "vlm", "vlm:VLMSettings",
            "Finetune a model that answers questions about images. Without arguments: a tiny model without "
            "pretraining, on the colours of digits.",
            ("vlm", "vlm --method lora steps=100",
             "vlm model=llava-hf/llava-1.5-7b-hf --data questions.jsonl block_size=32"),
            (Option("data", "--data", "Table with image, prompt and completion, or images and messages."),),
            text=True, plans=False,
        ),
        Recipe(
            "subject", "subject", "subject_settings:SubjectSettings",
            "Teach an image model one subject from a few images. Without arguments: a handwritten nine, on the "
            "built-in image model.",
            ("subject", "subject --method lora steps=200",
             'subject preset=sdxl model=models/sdxl --images dog/ --prompt "a sks dog" class_prompt="a dog"'),
            (Option("instance_images", "--images", "Folder with a few images of the subject."),
             Option("instance_prompt", "--prompt", "Prompt for these images: a rare word and the class, 'a sks dog'.")),
        ),
        Recipe(
            "control", "control", "control:ControlSettings",
            "Teach an image model to follow condition images: edges, maps, sketches, depth, poses, landmarks. Without "
            "arguments: masks, on the built-in image model.",
            ("control", "control --signal sketch --method lora steps=800",
             "control preset=stable-diffusion model=models/sd15 data=photos conditions=depths signal=depth"),
            (Option("signal", "--signal", "canny, segm, sketch, depth, densepose or landmark."),),
        ),
        Recipe(
            "t2i", "text_to_image", "text_to_image:TextToImageSettings",
            "Finetune an image model on captioned images. Without arguments: a new word, on the built-in image model.",
            ("t2i", "t2i --data birds/ model=models/sd15 --preset stable-diffusion",
             't2i --data birds/metadata.jsonl buckets=true caption="a bird" --dry-run'),
            (Option("data", "--data", "Folder, table (.jsonl, .parquet) or hub data set with captions."),),
        ),
    )
}  # fmt: skip
