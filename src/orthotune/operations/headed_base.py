"""The config that an adapter brings for its base: the labels of a head, the class of the model, parts of an encoder."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orthotune.errors import ConfigError
from orthotune.files.json_file import read_json
from orthotune.files.run_adapter import adapter_in
from orthotune.formats.adapter_file import CONFIG_NAME, read_config
from orthotune.operations.checkpoint.model_folder import companions_in

#: The folder beside an adapter's files with the config that its base is loaded with: the class, the labels of the head.
#: In the folder of the adapter itself transformers would take that config for one of a complete model.
FOLDER = "base"
#: transformers' name of the file.
MODEL_CONFIG = "config.json"
#: What belongs to the adapter alone.
OWN = ("adapter_", "README", FOLDER)
#: What of a config decides which model it describes.
DECIDES = ("architectures", "id2label")


@dataclass(frozen=True)
class HeadedBase:
    """How the base of an adapter is loaded, where the adapter says so.

    Args:
        folder: of the adapter.
        trained: names of modules that the adapter has in full; the base may lack their weights.
    """

    folder: Path
    trained: tuple[str, ...]

    @property
    def config(self) -> Path:
        """The folder with the config that the base is loaded with."""
        return self.folder / FOLDER

    def has(self, parameter: str) -> bool:
        """Whether a parameter is in a module that the adapter has in full.

        Args:
            parameter: its name in the model.

        Example:
            >>> HeadedBase(Path("adapter"), ("score",)).has("score.weight")
            True
        """
        parts = parameter.split(".")
        return any(".".join(parts[:end]).endswith(name) for end in range(1, len(parts)) for name in self.trained)

    def require_same(self, base: Path) -> None:
        """Refuse to merge into the files of a base that is another model than the one that was adapted.

        Args:
            base: folder of the base.

        Raises:
            ConfigError: the base has another head or other labels.
        """
        own = read_json(self.config / MODEL_CONFIG)
        found = read_json(base / MODEL_CONFIG) if (base / MODEL_CONFIG).is_file() else {}
        for key in DECIDES:
            if own.get(key) != found.get(key):
                raise ConfigError(
                    f"merging {self.folder} into the files of {base}", got=f"{key} {found.get(key)} in the base",
                    needed=f"{own.get(key)}, which the adapter was trained on",
                    do="Merge in memory, with the labels of the adapter: orthotune merge without --stream",
                )  # fmt: skip

    def copy_parts(self, out: Path) -> None:
        """Copy what lies beside the adapter and ``out`` lacks, as the pooling of an encoder.

        Args:
            out: folder of the merged model.
        """
        for path in companions_in(self.folder):
            target = out / path.name
            if path.name.startswith(OWN) or target.exists():
                continue
            if path.is_dir():
                shutil.copytree(path, target)
            else:
                shutil.copyfile(path, target)


def write_base_config(model: Any, folder: Path) -> None:
    """Write the config that the base of an adapter is loaded with.

    Args:
        model: the adapted model, without the adapter around it.
        folder: of the adapter.
    """
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder / FOLDER)


def headed_base(adapter: str | Path) -> HeadedBase | None:
    """What an adapter says of the model that its base is loaded as; None where it says nothing.

    Recipes for models with a head write the model's ``config.json`` into the folder ``base`` beside the adapter.

    Args:
        adapter: a folder as PEFT writes it, a run directory, or anything else.

    Example:
        >>> headed_base("adapters/style.safetensors") is None
        True
    """
    folder = adapter_in(adapter)
    if not ((folder / CONFIG_NAME).is_file() and (folder / FOLDER / MODEL_CONFIG).is_file()):
        return None
    return HeadedBase(folder, tuple(read_config(folder).get("modules_to_save") or ()))
