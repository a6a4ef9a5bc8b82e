"""Captions that a local image-to-text model of transformers writes beside images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from orthotune.errors import ConfigError, RecipeError
from orthotune.files.atomic import write_text
from orthotune.image.data.image_folder import ImageFile, Say, read_folder
from orthotune.image.data.masks import is_mask
from orthotune.image.data.other_trainers import caption_beside
from orthotune.metrics.measured import batches

#: What a model that follows instructions is asked.
QUESTION = "Describe this image in one sentence."


@dataclass(frozen=True)
class Wording:
    """How captions are asked for and edited.

    Args:
        question: to a model that follows instructions; other models only see the image.
        prefix: put before each caption, as "sks dog, ".
        suffix: put after each caption.
        replace: text -> text in its place, as {"a dog": "sks dog"}.
        max_tokens: the most tokens of a caption.

    Example:
        >>> Wording(prefix="sks dog, ", replace={"a brown dog": "the dog"}).edited("a brown dog on  grass\\n")
        'sks dog, the dog on grass'
    """

    question: str = QUESTION
    prefix: str = ""
    suffix: str = ""
    replace: Mapping[str, str] | None = None
    max_tokens: int = 60

    def edited(self, text: str) -> str:
        """A caption as it is written.

        Args:
            text: of the model.
        """
        text = " ".join(text.split())
        for old, new in (self.replace or {}).items():
            text = text.replace(old, new)
        return f"{self.prefix}{text}{self.suffix}"


def write_captions(
    folder: str | Path,
    model: str | Path,
    *,
    wording: Wording | None = None,
    overwrite: bool = False,
    batch_size: int = 4,
    say: Say = print,
    show: Callable[[int, int], None] | None = None,
) -> dict[str, str]:
    """Write a caption into the ``.txt`` file beside each image of a folder that has none.

    Args:
        folder: of images, with its subfolders.
        model: folder or hub name of an image-to-text model of transformers (BLIP, GIT, ViT-GPT2, LLaVA, Qwen-VL, ...).
        wording: how captions are asked for and edited.
        overwrite: also write a caption for images that have one.
        batch_size: images that are captioned together.
        say: gets messages about images that are not read.
        show: called with the number of finished images and of all of them.

    Returns:
        The captions that were written, by the name of the image.

    Raises:
        DataError: no readable image in the folder.
        RecipeError: no model there, or a model that does not write texts about images.
        OutputError: a caption cannot be written.

    Example:
        >>> write_captions("dog", "models/blip")  # doctest: +SKIP
        {'00': 'a dog sitting on a sofa'}
    """
    images = read_folder(Path(folder), say=say)
    names = {image.name for image in images}
    wanted = [
        image
        for image in images
        if isinstance(image.origin, Path)
        and not is_mask(image.name, names)
        and (overwrite or caption_beside(image.origin) is None)
    ]
    if not wanted:
        return {}
    wording = wording or Wording()
    writer = _Writer(str(model), wording)
    found: dict[str, str] = {}
    for part in batches(wanted, batch_size):
        for image, text in zip(part, writer.captions(part), strict=True):
            path: Any = image.origin
            found[image.name] = wording.edited(text)
            write_text(path.with_suffix(".txt"), found[image.name] + "\n")
        if show is not None:
            show(len(found), len(wanted))
    return found


class _Writer:
    """A loaded model with its processor."""

    def __init__(self, source: str, wording: Wording) -> None:
        import transformers

        loader: Any = transformers.AutoModelForImageTextToText
        processors: Any = transformers.AutoProcessor
        try:
            self.processor = processors.from_pretrained(source, trust_remote_code=False)
            model = loader.from_pretrained(source, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as fault:
            raise RecipeError(
                f"the caption model {source}", got=(str(fault).strip().splitlines() or [type(fault).__name__])[0],
                needed="an image-to-text model of transformers: a folder as written by save_pretrained, or a hub name",
                do="Check the name and the network",
            ) from fault  # fmt: skip
        device: Any = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
        self.model, self.device, self.wording = model.to(device).eval(), device, wording
        tokenizer = getattr(self.processor, "tokenizer", None)
        if tokenizer is None:
            raise RecipeError(f"the caption model {source}", got=f"a {type(self.processor).__name__} without tokenizer")
        tokenizer.padding_side = "left"
        self.tokenizer = tokenizer
        self.asks = bool(getattr(self.processor, "chat_template", None) or getattr(tokenizer, "chat_template", None))

    @torch.no_grad()
    def captions(self, images: Sequence[ImageFile]) -> list[str]:
        from PIL import Image

        shown = [Image.fromarray(image.pixels()) for image in images]
        if self.asks:
            content = [{"type": "image"}, {"type": "text", "text": self.wording.question}]
            text = self.processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True
            )
            inputs = self.processor(images=shown, text=[text] * len(shown), return_tensors="pt", padding=True)
        else:
            inputs = self.processor(images=shown, return_tensors="pt")
        inputs = inputs.to(self.device)
        tokens = self.model.generate(**inputs, max_new_tokens=self.wording.max_tokens, do_sample=False)
        # A decoder repeats what it was asked; an encoder-decoder and a model without a question do not.
        asked = inputs["input_ids"].shape[1] if self.asks and not self.model.config.is_encoder_decoder else 0
        return [text.strip() for text in self.tokenizer.batch_decode(tokens[:, asked:], skip_special_tokens=True)]


def replacements(pairs: Sequence[str]) -> dict[str, str]:
    """Replacements as they are given on the command line.

    Args:
        pairs: each ``OLD=NEW``.

    Raises:
        ConfigError: a pair without ``=`` or without a text before it.

    Example:
        >>> replacements(["a dog=sks dog"])
        {'a dog': 'sks dog'}
    """
    found = {}
    for pair in pairs:
        old, equals, new = pair.partition("=")
        if not equals or not old:
            raise ConfigError(f"--replace {pair}", needed="OLD=NEW, as 'a dog=sks dog'")
        found[old] = new
    return found
