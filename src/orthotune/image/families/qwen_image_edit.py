"""Qwen-Image-Edit: Qwen-Image that reads images by its text encoder and as latents (Qwen 2025)."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from orthotune.image.data.batch import Conditions, Sources
from orthotune.image.families.qwen_image import QwenImage


class QwenImageEdit(QwenImage):
    """Qwen-Image-Edit, with one image. Training takes the image in the size of the new one.

    The pipeline of diffusers brings the image that is edited to about 1024 x 1024 pixels, whatever the size of the new
    one, and the text encoder sees it in that size, too.
    """

    name = "qwen-image-edit"
    pipeline_class = "QwenImageEditPipeline"
    reads: ClassVar[Literal["references"]] = "references"
    text_reads_references = True
    #: pixels of the image that the text encoder sees
    shown: ClassVar[int] = 1024 * 1024

    def encode_sources(self, sources: Sources) -> Conditions:
        self.check_sources(sources)
        latents = [self.encode_exactly(images / 127.5 - 1).squeeze(2) for images in sources.images.unbind(1)]
        return {"references": torch.stack(latents, dim=1)}

    def _encode_reading(self, captions: list[str], sources: Sources) -> Conditions:
        rows = []
        # One by one: the processor of a pipeline takes the images of one prompt.
        for caption, images in zip(captions, sources.images, strict=True):
            shown: Any = [self._as_seen(image) for image in pillow_images(images)]
            found, _ = self.pipeline.encode_prompt([caption], image=self._given(shown), device=self.device)
            rows.append(found[0])
        return stacked([{"tokens": row, "mask": row.new_ones(len(row), dtype=torch.bool)} for row in rows])

    def _given(self, images: list[Any]) -> Any:
        return images[0]

    def _as_seen(self, image: Any) -> Any:
        """The image in the size in which the text encoder sees it."""
        width, height = self._sizes(self.shown, image.width / image.height)[:2]
        return self.pipeline.image_processor.resize(image, height, width)

    @property
    def _sizes(self) -> Callable[[int, float], tuple[int, ...]]:
        """The pipeline's own function from an area and a ratio to width and height."""
        module = import_module(type(self.pipeline).__module__)
        found: Callable[[int, float], tuple[int, ...]] = module.calculate_dimensions
        return found

    def _sample(self, prompts: list[str], generators: list[torch.Generator], **options: Any) -> Tensor:
        sources: Sources = options.pop("sources")
        found = []
        for number, (prompt, generator) in enumerate(zip(prompts, generators, strict=True)):
            references = self._given(pillow_images(sources.images[number]))
            found.append(super()._sample([prompt], [generator], image=references, **options))
        return torch.cat(found)


class QwenImageEditPlus(QwenImageEdit):
    """Qwen-Image-Edit of September 2025 and later (2509, 2511), with up to three images."""

    name = "qwen-image-edit-plus"
    pipeline_class = "QwenImageEditPlusPipeline"
    most_references = 3
    shown = 384 * 384

    def _given(self, images: list[Any]) -> Any:
        return images


def pillow_images(images: Tensor) -> list[Any]:
    """Pillow's images of a tensor, uint8 [k, 3, H, W].

    Example:
        >>> [image.size for image in pillow_images(torch.zeros(2, 3, 4, 6, dtype=torch.uint8))]
        [(6, 4), (6, 4)]
    """
    from PIL import Image

    return [Image.fromarray(image.permute(1, 2, 0).cpu().numpy()) for image in images]


def stacked(rows: list[Conditions]) -> Conditions:
    """Conditions of single images as those of a batch; shorter tensors are filled up with zeros at the end.

    Args:
        rows: of each image, without the dimension of the batch.

    Example:
        >>> stacked([{"a": torch.ones(1, 2)}, {"a": torch.ones(2, 2)}])["a"].sum(dim=2)
        tensor([[2., 0.],
                [2., 2.]])
    """
    from torch.nn.utils.rnn import pad_sequence

    return {name: pad_sequence([row[name] for row in rows], batch_first=True)
            if len({row[name].shape[:1] for row in rows}) > 1 else torch.stack([row[name] for row in rows])
            for name in rows[0]}  # fmt: skip
