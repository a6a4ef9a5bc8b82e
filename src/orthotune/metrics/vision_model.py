"""Load a vision model by path or hub name, and compute its embeddings of images and prompts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from orthotune.errors import DataError
from orthotune.metrics.measured import batches

#: The models of published scores.
DINO, CLIP = "facebook/dino-vits16", "openai/clip-vit-base-patch32"


def load(name: str, device: str, kind: Any = None) -> tuple[Any, Any]:
    """A model of transformers in float32 for evaluation, and its image processor.

    Images are resized by Pillow, so that scores do not depend on whether torchvision is installed.

    Args:
        name: path or hub name.
        device: where the model runs.
        kind: the auto class of transformers; ``AutoModel`` if None.

    Raises:
        DataError: there is no such model at the path or name.

    Example:
        >>> model, processor = load("models/dino", "cpu")  # doctest: +SKIP
    """
    from transformers import AutoImageProcessor, AutoModel

    try:
        model = (kind or AutoModel).from_pretrained(name, dtype=torch.float32, trust_remote_code=False)
        processor = AutoImageProcessor.from_pretrained(name, backend="pil")
    except (OSError, ValueError) as fault:
        given = str(fault).strip().splitlines()
        raise DataError(f"model {name}", got=given[0] if given else "no model", do="Check the path or name") from fault
    return model.eval().to(device), processor


@torch.no_grad()
def image_embeddings(images: Iterable[Any], model: Any, processor: Any, batch_size: int = 16) -> Tensor:
    """One unit vector per image: the projected embedding of CLIP, or the class token of another vision transformer.

    Args:
        images: the images.
        model: of :func:`load`.
        processor: of :func:`load`.
        batch_size: images per forward.

    Shapes: images ``(height, width, 3)`` uint8 of any sizes -> ``(images, features)`` float32 on the CPU.

    Raises:
        DataError: the model has no class token and no image projection.

    Example:
        >>> image_embeddings([image], *load("models/dino", "cpu")).shape  # doctest: +SKIP
        torch.Size([1, 384])
    """
    found = []
    for batch in batches(images, batch_size):
        inputs = processor(images=batch, return_tensors="pt").to(model.device)
        if hasattr(model, "get_image_features"):
            vectors = _tensor(model.get_image_features(**inputs))
        else:
            hidden = getattr(model(**inputs), "last_hidden_state", None)
            if hidden is None or hidden.ndim != 3:
                raise DataError(f"model {model.name_or_path}", got="no class token", needed="a vision transformer")
            vectors = hidden[:, 0]
        found.append(normalize(vectors.float(), dim=-1).cpu())
    return torch.cat(found)


def tokenizer_of(name: str, model: Any) -> Any:
    """The tokenizer of a model with a text encoder.

    Args:
        name: path or hub name of the model.
        model: the loaded model.

    Raises:
        DataError: the model has no text encoder.
    """
    from transformers import AutoTokenizer

    if not hasattr(model, "get_text_features"):
        raise DataError(f"model {name}", got="no text side", needed="a CLIP model")
    return AutoTokenizer.from_pretrained(name, trust_remote_code=False)


@torch.no_grad()
def prompt_embeddings(prompts: Sequence[str], model: Any, tokenizer: Any, batch_size: int = 64) -> Tensor:
    """One unit vector per prompt, in the embedding space of CLIP; a prompt that is too long is truncated.

    Args:
        prompts: the prompts.
        model: a CLIP model.
        tokenizer: of the model.
        batch_size: prompts per forward.

    Shapes: ``(prompts, features)`` float32 on the CPU.
    """
    length = model.config.text_config.max_position_embeddings
    found = []
    for batch in batches(prompts, batch_size):
        words = tokenizer(batch, padding=True, truncation=True, max_length=length, return_tensors="pt").to(model.device)
        features = model.get_text_features(input_ids=words["input_ids"], attention_mask=words["attention_mask"])
        found.append(normalize(_tensor(features).float(), dim=-1).cpu())
    return torch.cat(found)


def _tensor(features: Any) -> Tensor:
    # Later versions of transformers wrap the projected vectors.
    return features if isinstance(features, Tensor) else features.pooler_output
