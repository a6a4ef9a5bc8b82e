"""What an adapter file says of itself in its header: ModelSpec, as image tools and sites for models show it.

Source: Stability AI's ModelSpec 1.0.1, keys ``modelspec.*`` in the metadata of a safetensors file.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from torch import Tensor

from orthotune.files.safetensors_file import read_tensors, write_tensors
from orthotune.files.safetensors_header import check_header
from orthotune.formats.codecs.written_header import kohya_hash

VERSION = "1.0.1"
IMPLEMENTATION = "https://github.com/huggingface/diffusers"
#: Generation of a family -> its architecture in ModelSpec; other families keep their name.
ARCHITECTURES = {
    "stable-diffusion": "stable-diffusion-v1",
    "stable-diffusion-2": "stable-diffusion-v2-512",
    "stable-diffusion-2-v": "stable-diffusion-v2-768-v",
    "stable-diffusion-inpainting": "stable-diffusion-v1",
    "sdxl-inpainting": "stable-diffusion-xl-v1-base",
    "sdxl": "stable-diffusion-xl-v1-base",
    "sd3": "stable-diffusion-3-medium",
    "flux": "flux-1-dev",
    "z-image": "z-image",
    "qwen-image": "qwen-image",
}
#: Longest side of a thumbnail, in pixels.
THUMBNAIL = 256


@dataclass(frozen=True)
class ModelSpec:
    """What a run knows of its adapter.

    Args:
        family: generation of the family of the base, see :class:`~orthotune.image.families.family.Family`.
        method: ``oft``, ``coft`` or ``lora``.
        base: path or name of the base; only its last part is written, no path of a machine.
        trigger: words that call what was learned, divided by commas.
        resolution: width and height in pixels.
        thumbnail: a PNG to show; None for none.
    """

    family: str
    method: str
    base: str
    trigger: str = ""
    resolution: tuple[int, int] | None = None
    thumbnail: Path | None = None

    def entries(self, tensors: Mapping[str, Tensor]) -> dict[str, str]:
        """The entries of the header.

        Args:
            tensors: of the file, for its hash.

        Example:
            >>> spec = ModelSpec("sdxl", "oft", "models/sdxl", "sks")
            >>> spec.entries({})["modelspec.architecture"], spec.entries({})["modelspec.trigger_phrase"]
            ('stable-diffusion-xl-v1-base/oft', 'sks')
        """
        base = self.base.replace("\\", "/").rstrip("/").rpartition("/")[2]
        found = {
            "sai_model_spec": VERSION,
            "architecture": f"{ARCHITECTURES.get(self.family, self.family)}/{self.method}",
            "implementation": IMPLEMENTATION,
            "title": f"{self.trigger or self.method} on {base}",
            "hash_sha256": f"0x{kohya_hash(tensors)}",
        }
        if self.trigger:
            found["trigger_phrase"] = self.trigger
        if self.resolution:
            found["resolution"] = "x".join(map(str, self.resolution))
        if self.thumbnail is not None:
            found["thumbnail"] = _thumbnail(self.thumbnail)
        return {f"modelspec.{key}": value for key, value in found.items()}


def describe(path: Path, spec: ModelSpec) -> None:
    """Add the entries to a safetensors file; its tensors stay, bit for bit.

    Args:
        path: of the file.
        spec: what to write.

    Raises:
        OutputError: the file cannot be written.
    """
    tensors, metadata = read_tensors(path), check_header(path).metadata
    write_tensors(path, tensors, {**metadata, **spec.entries(tensors)})


def _thumbnail(path: Path) -> str:
    """A small JPEG as a data URI."""
    from PIL import Image

    content = BytesIO()
    with Image.open(path) as image:
        shown: Any = image.convert("RGB")
        shown.thumbnail((THUMBNAIL, THUMBNAIL))
        shown.save(content, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode("ascii")
