"""A folder with ``adapter_config.json``: the base class of the formats of all PEFT versions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from orthotune.formats.format import Format
from orthotune.formats.names.prefixes import PEFT

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from orthotune.formats.adapter_state import AdapterState, LayerState

#: Fields that all versions write, or read with the same meaning.
SHARED: dict[str, Any] = {
    "auto_mapping": None, "base_model_name_or_path": None, "inference_mode": True, "init_weights": True,
    "layers_pattern": None, "layers_to_transform": None, "modules_to_save": None, "revision": None, "task_type": None,
}  # fmt: skip
#: Fields of all OFT configs, and fields of all configs since 0.14.
OFT = {"module_dropout": 0.0, "coft": False, "eps": 6e-05}
LATER = {"bias": "none", "exclude_modules": None, "fan_in_fan_out": False}


class PeftFolder(Format):
    """A format of one version of PEFT.

    Attributes:
        fields: fields of the version besides :data:`SHARED`; the set of fields identifies a version of PEFT.
        unknown: fields that other methods of PEFT have, and this one warns about.
    """

    prefixes = PEFT
    folder = True
    fields: ClassVar[Mapping[str, Any]] = {}
    unknown: ClassVar[frozenset[str]] = frozenset()

    def encoded(
        self, state: AdapterState, keys: Mapping[str, str], layers: Mapping[str, LayerState]
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors of a written file, and the config fields that describe the blocks of all layers.

        Args:
            state: the adapter.
            keys: layer -> prefix of its tensor names.
            layers: dotted module name -> layer, for fields that name modules.

        Raises:
            UnsupportedLayerError: no single config describes the blocks of all layers.
        """
        raise NotImplementedError(f"folders of the format {self.name} cannot be written")

    def write(self, state: AdapterState, out: Path, names: Mapping[str, str]) -> Path:
        """Write the folder, the config last, so that a folder with a config is complete."""
        from orthotune.files.json_file import write_json
        from orthotune.files.safetensors_file import write_tensors
        from orthotune.formats.adapter_file import CONFIG_NAME, WEIGHTS_NAME
        from orthotune.formats.peft.names import PREFIX

        known = ("base_model_name_or_path", "task_type")
        config = SHARED | {key: state.config[key] for key in known if key in state.config}
        if state.transforms:  # the numbers of some transforms, such as an odd number of reflections, have no identity
            config["init_weights"] = False
        config |= {**self.fields, "target_modules": sorted(names.values())}
        keys = {name: PREFIX + module for name, module in names.items()}
        tensors, sizes = self.encoded(state, keys, {names[name]: layer for name, layer in state.layers.items()})
        config |= sizes
        if state.config.get("peft_type"):  # further parameters that PEFT trained, such as modules_to_save
            tensors |= {PREFIX + name: tensor for name, tensor in state.other.items()}
            config |= {key: state.config[key] for key in ("modules_to_save", "bias") if key in state.config}
        config = {key: value for key, value in config.items() if key not in self.unknown}
        write_tensors(out / WEIGHTS_NAME, tensors, {"format": "pt"})
        write_json(out / CONFIG_NAME, config, sort_keys=True, nan_as_null=False)
        return out
