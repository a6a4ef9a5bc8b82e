"""What a figure was measured on: device, threads, versions, commit. No path, no host name."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

from orthotune.files.platforms import processor_name

LIBRARIES = ("torch", "peft", "transformers", "diffusers")


def device_name(device: torch.device) -> str:
    """The model of the GPU or of the processor.

    Example:
        >>> bool(device_name(torch.device("cpu")))
        True
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return processor_name()


def versions() -> str:
    """Python and the libraries that a figure depends on, as ``name version`` joined by ``;``.

    Example:
        >>> versions().split(" ")[0]
        'python'
    """
    found = [f"python {platform.python_version()}"]
    for name in LIBRARIES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return "; ".join(found)


def commit() -> str:
    """The commit of this source tree, with ``-dirty`` when tracked files differ from it; empty outside of one.

    Example:
        >>> isinstance(commit(), str)
        True
    """
    here = Path(__file__).parent
    try:
        # An installation inside somebody else's repository must not take its commit.
        subprocess.run(["git", "ls-files", "--error-unmatch", "__init__.py"], cwd=here, capture_output=True, check=True)
        words = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(words, cwd=here, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
