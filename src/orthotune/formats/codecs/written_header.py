"""The metadata of a written file, as the target tool would have written it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


def header(source: Mapping[str, str], module: str | None, dim: int | None, args: Mapping[str, str]) -> dict[str, str]:
    """Metadata of a new file: entries about the training run are kept, entries about the network are replaced.

    Args:
        source: the metadata of the file that was converted.
        module: ``ss_network_module``; None for a tool that does not write it.
        dim: ``ss_network_dim``.
        args: ``ss_network_args``.

    Example:
        >>> header({"ss_seed": "1", "ss_network_module": "networks.oft"}, "lycoris.kohya", 4, {"algo": "diag-oft"})
        {'ss_seed': '1', 'ss_network_module': 'lycoris.kohya', 'ss_network_dim': '4', 'ss_network_args': '{"algo": \
"diag-oft"}'}
    """
    ours = ("ss_network_", "sshs_", "format", "modelspec.hash")
    found = {key: text for key, text in source.items() if not key.startswith(ours)}
    if module is not None:
        found["ss_network_module"] = module
        if dim is not None:
            found["ss_network_dim"] = str(dim)
        found["ss_network_args"] = json.dumps(dict(args))
    return found


def lycoris_hash(tensors: Mapping[str, Tensor]) -> str:
    """``sshs_model_hash`` of LyCORIS 3.0 and later: a hash of the bytes of the tensors, in the given order.

    Example:
        >>> lycoris_hash({})[:10]
        '0xe3b0c442'
    """
    return f"0x{_sha256(tensors.values())}"


def kohya_hash(tensors: Mapping[str, Tensor]) -> str:
    """``sshs_model_hash`` of sd-scripts and LyCORIS 2: a hash of the bytes after the header of the file.

    safetensors writes tensors with larger dtypes first, and tensors of the same dtype by name.

    Example:
        >>> kohya_hash({})[:8]
        'e3b0c442'
    """
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    return _sha256(tensor for _, tensor in ordered)


def _sha256(tensors: Iterable[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return bytes(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy())
