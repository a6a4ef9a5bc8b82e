"""HRA of PEFT: products of Householder reflections on the input side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from orthotune.formats.kinds import IN_REFLECTIONS
from orthotune.formats.peft.folder import PeftFolder

if TYPE_CHECKING:
    from torch import Tensor

    from orthotune.formats.adapter_file import AdapterFile
    from orthotune.formats.adapter_state import AdapterState, LayerState
    from orthotune.formats.read_options import ReadOptions


class PeftHra(PeftFolder):
    """``W' = W H_1 .. H_r`` with the vectors of the reflections in the columns of ``hra_u`` ``(in, r)``."""

    name = target = "peft-hra"
    producer = "PEFT's HRA"
    tool = "PEFT's HRA"
    lossless = frozenset({IN_REFLECTIONS})
    fields: ClassVar[Mapping[str, Any]] = {
        "peft_type": "HRA",
        "bias": "none",
        "exclude_modules": None,
        "peft_version": "0.18.0",
    }

    def detect(self, file: AdapterFile, options: ReadOptions) -> bool:
        """Whether the config is HRA's, or the names of the tensors are."""
        return file.has("hra_u")

    def read(self, file: AdapterFile, options: ReadOptions) -> AdapterState:
        """Read the vectors of every layer; they stay trainable.

        Raises:
            AdapterFileError: the config is missing, which says whether the vectors are made orthogonal; or a tensor is
                damaged.
        """
        from orthotune.formats.codecs.family_tensors import family_layer
        from orthotune.formats.peft.other_methods import read_other

        variant = "gram_schmidt" if (file.config or {}).get("apply_GS") else ""

        def layer(name: str, tensors: Mapping[str, Tensor]) -> Any:
            from orthotune.rotation.spec import RotationSpec

            vectors = tensors["hra_u"]
            return family_layer(
                file, f"{name}.hra_u", vectors.mT, RotationSpec(transform="reflections", variant=variant)
            )

        return read_other(file, self.name, "HRA", ("hra_u",), layer)

    def encoded(
        self, state: AdapterState, keys: Mapping[str, str], layers: Mapping[str, LayerState]
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Encode the vectors, and one rank for all layers.

        Raises:
            UnsupportedLayerError: layers differ in rank or variant, which PEFT's config holds once.
        """
        from orthotune.formats.peft.other_methods import one_value
        from orthotune.rotation.reflections import Reflections

        held = {name: layer for name, layer in state.transforms.items() if isinstance(layer, Reflections)}
        tensors = {f"{keys[name]}.hra_u": layer.numbers.float().mT.contiguous() for name, layer in held.items()}
        rank = one_value("r", {name: layer.spec.rank for name, layer in held.items()})
        variant = one_value("apply_GS", {name: layer.spec.variant for name, layer in held.items()})
        return tensors, {"r": rank, "apply_GS": bool(variant)}
