"""The shapes of the weights in the files of a base model, by module. No weight is read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from orthotune.errors import AdapterFileError
from orthotune.files.names import shortened
from orthotune.files.safetensors_header import check_header
from orthotune.formats.names.spelling import places

#: Prefix of the names of a component, in a single file that holds a complete pipeline.
INSIDE = {
    "model.diffusion_model.": "unet",
    "control_model.": "controlnet",
    "cond_stage_model.transformer.": "text_encoder",
    "conditioner.embedders.0.transformer.": "text_encoder",
    "conditioner.embedders.1.model.": "text_encoder_2",
}


@dataclass(frozen=True)
class BaseWeights:
    """The modules of a base model.

    Attributes:
        shapes: (component, module) -> shape of the weight; the component of a single model is "".
    """

    shapes: dict[tuple[str, str], tuple[int, ...]]

    @property
    def modules(self) -> dict[str, list[str]]:
        """Component -> names of its modules."""
        found: dict[str, list[str]] = {}
        for component, module in self.shapes:
            found.setdefault(component, []).append(module)
        return found

    @property
    def rows(self) -> dict[str, dict[str, int]]:
        """Component -> module -> rows of its weight."""
        found: dict[str, dict[str, int]] = {}
        for (component, module), shape in self.shapes.items():
            found.setdefault(component, {})[module] = shape[0]
        return found

    def of_layers(self, names: Iterable[str]) -> dict[str, tuple[str, str]]:
        """Layer of an adapter -> component and module of the base.

        Raises:
            UnsupportedLayerError: a layer matches no module, or more than one.
        """
        return places(names, self.modules)


def open_base(path: str | Path) -> BaseWeights:
    """Read the shapes of a model in a file, in a folder, or in the component folders of a pipeline.

    Raises:
        AdapterFileError: there is no safetensors file, or a file is damaged.

    Example:
        >>> open_base("models/sd15").modules.keys()  # doctest: +SKIP
        dict_keys(['text_encoder', 'unet', 'vae'])
    """
    path = Path(path)
    found = [path] if path.is_file() else sorted(path.glob("*.safetensors")) if path.is_dir() else []
    parts = {"": found} if found else {}
    if not found and path.is_dir():
        parts = {inner.name: sorted(inner.glob("*.safetensors")) for inner in sorted(path.iterdir()) if inner.is_dir()}
    # A folder may hold the same weights a second time in half precision.
    parts = {name: [f for f in files if ".fp16." not in f.name] or files for name, files in parts.items() if files}
    if not parts:
        raise AdapterFileError(f"--base {path}", got="no safetensors file", needed="a local file or folder of a model")
    base = BaseWeights({})
    for component, files in parts.items():
        for file in files:
            _add(base, component, file)
    if not base.shapes:
        names = shortened(file.name for files in parts.values() for file in files)
        raise AdapterFileError(f"--base {path}", got=f"no weight in {names}")
    return base


def _add(base: BaseWeights, component: str, path: Path) -> None:
    check_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                shape = tuple(file.get_slice(name).get_shape())
                if not name.endswith(".weight") or len(shape) < 2:
                    continue
                module, inner = name.removesuffix(".weight"), component
                for prefix, meant in INSIDE.items():
                    if not component and module.startswith(prefix):
                        module, inner = module.removeprefix(prefix), meant
                base.shapes[inner, module] = shape
    except (SafetensorError, OSError) as error:
        raise AdapterFileError(f"{path} is damaged", got=str(error), do="Download it again") from error
