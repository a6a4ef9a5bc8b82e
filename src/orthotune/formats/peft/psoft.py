"""PSOFT of PEFT: rotations of the leading singular coordinates, with two scales."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from orthotune.formats.kinds import IN_SUBSPACE
from orthotune.formats.peft.folder import PeftFolder

if TYPE_CHECKING:
    from torch import Tensor

    from orthotune.formats.adapter_file import AdapterFile
    from orthotune.formats.adapter_state import AdapterState, LayerState
    from orthotune.formats.read_options import ReadOptions

#: Field of the config -> the value with which the map is the one that is trained here. With a randomised SVD, PEFT's
#: two factors come from a sketch of the weight and not from the weight, so that W + B (R - I) A maps no inputs of W.
_NEEDED: dict[str, Any] = {
    "ab_svd_init": "psoft_init", "psoft_orth": True, "use_cayley_neumann": False, "psoft_svd": "full",
}  # fmt: skip
VECTORS = ("psoft_R.vector_a", "psoft_R.vector_b")


class PeftPsoft(PeftFolder):
    """``W' = W + B (R - I) A`` with ``psoft_R``; ``A`` and ``B`` are not in the file: PEFT finds them from ``W``."""

    name = target = "peft-psoft"
    producer = "PEFT's PSOFT"
    tool = "PEFT's PSOFT"
    lossless = frozenset({IN_SUBSPACE})
    note = "PEFT's PSOFT finds the singular vectors anew: their signs must come out as they did in the training"
    unknown = frozenset({"bias"})
    fields: ClassVar[Mapping[str, Any]] = {
        "peft_type": "PSOFT", "exclude_modules": None, "fan_in_fan_out": False, "psoft_alpha": 32, "psoft_dropout": 0.0,
        "peft_version": "0.18.0",
    } | _NEEDED  # fmt: skip

    def detect(self, file: AdapterFile, options: ReadOptions) -> bool:
        """Whether the names of the tensors are PSOFT's."""
        return file.has(r"psoft_R\.weight")

    def read(self, file: AdapterFile, options: ReadOptions) -> AdapterState:
        """Read skew matrices and scales of every layer; they stay trainable.

        Raises:
            AdapterFileError: the config is missing, or asks for another map (``pissa_init``, a free matrix, a series, a
                randomised SVD); or a tensor is damaged.
        """
        import torch

        from orthotune.errors import AdapterFileError
        from orthotune.formats.codecs.family_tensors import family_layer
        from orthotune.formats.peft.other_methods import read_other
        from orthotune.rotation.spec import RotationSpec

        config = file.config or {}
        for field, value in _NEEDED.items():
            if config.get(field, value) != value:
                raise AdapterFileError(
                    f"{field}={str(config[field])[:80]!r} of {file.path}", needed=f"{value!r}, with which the map is "
                    "a rotation of singular coordinates between two scales", do="Merge the adapter with PEFT itself",
                )  # fmt: skip

        def layer(name: str, tensors: Mapping[str, Tensor]) -> Any:
            packed = tensors["psoft_R.weight"].flatten()
            scaled = any(vector in tensors for vector in VECTORS)
            parts = [packed.float()]
            if scaled:
                rank = next(tensors[vector] for vector in VECTORS if vector in tensors).numel()
                parts += [tensors.get(vector, torch.ones(rank)).float() - 1 for vector in VECTORS]
            spec = RotationSpec(transform="subspace", variant="psoft" if scaled else "rotation")
            return family_layer(file, f"{name}.psoft_R.weight", torch.cat(parts)[None], spec)

        return read_other(file, self.name, "PSOFT", ("psoft_R.weight",), layer, optional=VECTORS)

    def encoded(
        self, state: AdapterState, keys: Mapping[str, str], layers: Mapping[str, LayerState]
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Encode skew matrices and scales.

        Raises:
            UnsupportedLayerError: layers differ in rank or variant, which PEFT's config holds once, or the singular
                vectors are those of a randomised SVD.
        """
        from orthotune.errors import UnsupportedLayerError
        from orthotune.formats.peft.other_methods import one_value
        from orthotune.rotation.packing import element_count
        from orthotune.rotation.subspace import Subspace

        held = {name: layer for name, layer in state.transforms.items() if isinstance(layer, Subspace)}
        tensors = {}
        for name, layer in held.items():
            r, numbers = layer.spec.rank, layer.numbers[0].float()
            count = element_count(r)
            tensors[f"{keys[name]}.psoft_R.weight"] = numbers[:count].contiguous()
            for index, vector in enumerate(VECTORS if len(numbers) > count else ()):
                tensors[f"{keys[name]}.{vector}"] = 1 + numbers[count + index * r : count + (index + 1) * r]
        variant = one_value("variant", {name: layer.spec.variant or "rotation" for name, layer in held.items()})
        scaled = variant.startswith("psoft")
        if variant.endswith("lowrank"):
            raise UnsupportedLayerError(
                f"the variant {variant!r} for PEFT's PSOFT", got="singular vectors of a randomised SVD, which "
                "PEFT's file does not hold", needed="those of a full SVD, which PEFT finds again",
            )  # fmt: skip
        return tensors, {
            "r": one_value("r", {name: layer.spec.rank for name, layer in held.items()}),
            "psoft_mag_a": scaled, "psoft_mag_b": scaled,
        }  # fmt: skip
