"""Encoded pictures and captions on disk, found again only by exactly what they were made from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from orthotune.files.safetensors_file import write_tensors
from orthotune.image.families.family import Family


def digest(*parts: object) -> str:
    """One name for all of ``parts``, bytes or things with an exact ``repr``; other parts, another name.

    Example:
        >>> digest(b"ab", (1, 2)) == digest(b"ab", (1, 2)), digest("a", "b") == digest("ab", "")
        (True, False)
    """
    found = hashlib.sha256()
    for part in parts:
        said = part if isinstance(part, bytes) else repr(part).encode()
        found.update(f"{len(said)}:".encode())
        found.update(said)
    return found.hexdigest()[:40]


class EncodedStore:
    """Tensors in files of their own under ``folder``, by key.

    Args:
        folder: made when something is kept.
        model: :func:`fingerprint` of what encodes; what another model encoded is never found.
    """

    def __init__(self, folder: Path, model: str) -> None:
        self.folder, self.model = Path(folder), model

    def get(self, key: str) -> dict[str, Tensor] | None:
        """What was kept under ``key``; None when nothing was, or its file is damaged."""
        path = self._path(key)
        try:
            return load_file(path) if path.is_file() else None
        except (SafetensorError, OSError):
            return None

    def put(self, key: str, tensors: dict[str, Tensor]) -> None:
        """Keep ``tensors``; the file appears when it is complete.

        Raises:
            OutputError: the folder cannot be written to, or the disk is full.
        """
        write_tensors(self._path(key), tensors)

    def _path(self, key: str) -> Path:
        return self.folder / f"{digest(key, self.model)}.safetensors"


def picture_model(family: Family) -> str:
    """What decides how ``family`` encodes images: its VAE, weights and config."""
    vae = family.pipeline.vae
    return digest(family.name, _config(vae), fingerprint([vae]))


def caption_model(family: Family) -> str:
    """What decides how ``family`` encodes captions: its text encoders and tokenizers."""
    encoders = family.text_encoders
    readers = {name: part for name, part in vars(family.pipeline).items() if name.startswith("tokenizer") and part}
    words = [(name, _vocabulary(reader)) for name, reader in sorted(readers.items())]
    return digest(family.name, words, [_config(part) for part in encoders.values()], fingerprint(encoders.values()))


@torch.no_grad()
def fingerprint(modules: Iterable[nn.Module]) -> str:
    """A name for the weights of ``modules``: any other value, name, shape or dtype gives another.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> before = fingerprint([layer])
        >>> _ = layer.bias[0].data.add_(1e-3)
        >>> fingerprint([layer]) == before
        False
    """
    found = hashlib.sha256()
    for module in modules:
        for name, value in module.state_dict().items():
            found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            found.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _config(module: Any) -> str:
    config = module.config
    said = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    # Where it was loaded from, and by which version, changes nothing.
    return json.dumps({key: said[key] for key in sorted(said) if not key.startswith("_")}, default=repr)


def _vocabulary(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    said = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return digest(said, tokenizer.model_max_length)
