"""RoAd of PEFT: planes of two outputs, with scales."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from orthotune.formats.kinds import OUT_PLANES
from orthotune.formats.peft.folder import PeftFolder

if TYPE_CHECKING:
    from torch import Tensor

    from orthotune.formats.adapter_file import AdapterFile
    from orthotune.formats.adapter_state import AdapterState, LayerState
    from orthotune.formats.read_options import ReadOptions


class PeftRoad(PeftFolder):
    """``W' = M W``, and ``b' = M b`` for a bias, with ``road_theta`` and ``road_alpha``."""

    name = target = "peft-road"
    producer = "PEFT's RoAd"
    tool = "PEFT's RoAd"
    lossless = frozenset({OUT_PLANES})
    side = "out"
    note = (
        "PEFT's RoAd maps the bias of a layer together with its output: the file means the same for layers without one"
    )
    unknown = frozenset({"bias", "layers_pattern", "layers_to_transform"})
    fields: ClassVar[Mapping[str, Any]] = {"peft_type": "ROAD", "peft_version": "0.18.0"}

    def detect(self, file: AdapterFile, options: ReadOptions) -> bool:
        """Whether the names of the tensors are RoAd's."""
        return file.has("road_theta|road_alpha")

    def read(self, file: AdapterFile, options: ReadOptions) -> AdapterState:
        """Read angles and scales of every layer; they stay trainable.

        Raises:
            AdapterFileError: the config is missing, which has variant and groups; or a tensor is damaged.
        """
        from dataclasses import replace

        import torch

        from orthotune.errors import AdapterFileError
        from orthotune.formats.codecs.family_tensors import family_layer
        from orthotune.formats.peft.config_field import integer
        from orthotune.formats.peft.other_methods import read_other
        from orthotune.rotation.pairs import PairedPlanes
        from orthotune.rotation.spec import RotationSpec

        config = file.config or {}
        variant = str(config.get("variant", "road_1"))
        if variant not in PairedPlanes.variants[1:]:
            raise AdapterFileError(
                f"variant={variant[:80]!r} of {file.path}", needed=f"one of {', '.join(PairedPlanes.variants[1:])}"
            )
        size = integer(config, "group_size", 64)
        spec = RotationSpec(transform="planes", side="out", variant=variant, block_size=size)

        def layer(name: str, tensors: Mapping[str, Tensor]) -> Any:
            theta, alpha = tensors["road_theta"], tensors["road_alpha"]
            if theta.shape != alpha.shape or theta.dim() != 1:
                raise AdapterFileError(
                    f"Layer '{name}' of {file.path}", got=f"angles {list(theta.shape)} and scales {list(alpha.shape)}",
                    needed="as many scales as angles",
                )  # fmt: skip
            made = family_layer(file, f"{name}.road_theta", torch.stack([theta, alpha.float() - 1]), spec)
            return replace(made, with_bias=True)

        return read_other(file, self.name, "ROAD", ("road_theta", "road_alpha"), layer)

    def encoded(
        self, state: AdapterState, keys: Mapping[str, str], layers: Mapping[str, LayerState]
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Encode angles and scales; the variant ``angles`` becomes ``road_1`` with scales of 1.

        Raises:
            UnsupportedLayerError: layers differ in variant or groups, which PEFT's config holds once.
        """
        import torch

        from orthotune.formats.peft.other_methods import one_value
        from orthotune.rotation.pairs import PairedPlanes

        held = {name: layer for name, layer in state.transforms.items() if isinstance(layer, PairedPlanes)}
        tensors: dict[str, Tensor] = {}
        for name, layer in held.items():
            theta = layer.numbers[0].float()
            alpha = 1 + layer.numbers[1].float() if len(layer.numbers) > 1 else torch.ones_like(theta)
            tensors |= {f"{keys[name]}.road_theta": theta.contiguous(), f"{keys[name]}.road_alpha": alpha}
        variants = {name: layer.spec.variant.replace("angles", "road_1") or "road_1" for name, layer in held.items()}
        size = one_value("group_size", {name: layer.spec.block_size for name, layer in held.items()})
        return tensors, {"variant": one_value("variant", variants), "group_size": size}
