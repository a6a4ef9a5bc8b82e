"""A disk cache of encoded images and captions, with a hash of all inputs as the key."""

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
    """A hash of ``parts``, which are bytes or values with an exact ``repr``.

    Example:
        >>> digest(b"ab", (1, 2)) == digest(b"ab", (1, 2)), digest("a", "b") == digest("ab", "")
        (True, False)
    """
    hashed = hashlib.sha256()
    for part in parts:
        content = part if isinstance(part, bytes) else repr(part).encode()
        hashed.update(f"{len(content)}:".encode())
        hashed.update(content)
    return hashed.hexdigest()[:40]


class EncodedStore:
    """Tensors by key, one file per key.

    Args:
        folder: of the files; created when the first entry is stored.
        model: a hash of the encoders; entries of other encoders are not used.
    """

    def __init__(self, folder: Path, model: str) -> None:
        self.folder, self.model = Path(folder), model

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The entry of a key; None if there is none or its file is damaged."""
        path = self._path(key)
        try:
            return load_file(path) if path.is_file() else None
        except (SafetensorError, OSError):
            return None

    def put(self, key: str, tensors: dict[str, Tensor]) -> None:
        """Store an entry, atomically.

        Args:
            key: of the entry.
            tensors: name -> tensor.

        Raises:
            OutputError: the folder cannot be written, or the disk is full.
        """
        write_tensors(self._path(key), tensors)

    def _path(self, key: str) -> Path:
        return self.folder / f"{digest(key, self.model)}.safetensors"


def image_model(family: Family) -> str:
    """A hash of everything that affects how ``family`` encodes images: weights and config of the VAE."""
    vae = family.pipeline.vae
    return digest(family.name, _config(vae), fingerprint([vae]))


def caption_model(family: Family) -> str:
    """A hash of everything that affects how ``family`` encodes captions: text encoders and tokenizers."""
    encoders = family.text_encoders
    readers = {name: part for name, part in vars(family.pipeline).items() if name.startswith("tokenizer") and part}
    # Pipelines also note the most tokens of a caption under such a name, a number.
    words = [
        (name, _vocabulary(reader) if hasattr(reader, "get_vocab") else repr(reader))
        for name, reader in sorted(readers.items())
    ]
    return digest(family.name, words, [_config(part) for part in encoders.values()], fingerprint(encoders.values()))


@torch.no_grad()
def fingerprint(modules: Iterable[nn.Module]) -> str:
    """A hash of the names, shapes, dtypes and values of the weights of ``modules``.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> before = fingerprint([layer])
        >>> _ = layer.bias[0].data.add_(1e-3)
        >>> fingerprint([layer]) == before
        False
    """
    hashed = hashlib.sha256()
    for module in modules:
        for name, value in module.state_dict().items():
            hashed.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            hashed.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return hashed.hexdigest()


def _config(module: Any) -> str:
    config = module.config
    fields = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    # The path and the version of the library have no effect on the encoding.
    return json.dumps({key: fields[key] for key in sorted(fields) if not key.startswith("_")}, default=repr)


def _vocabulary(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return digest(vocabulary, tokenizer.model_max_length)
