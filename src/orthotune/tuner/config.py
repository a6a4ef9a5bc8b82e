"""The configuration: every field that PEFT's OFT ever had, and ours."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

from packaging.version import InvalidVersion, Version
from peft import OFTConfig as PeftOFTConfig
from peft import PeftConfig
from peft.utils import PeftType

from orthotune.errors import ConfigError
from orthotune.formats import config_types, layer_settings
from orthotune.formats.adapter_file import numbers_in
from orthotune.formats.beyond_stock import FORMAT_VERSION, ORTHOTUNE_TYPE
from orthotune.formats.peft_fields import spec_of_fields
from orthotune.rotation.frozen import FrozenMap
from orthotune.rotation.spec import RotationSpec, Side
from orthotune.tuner.expressible import file_fields
from orthotune.tuner.old_layout import old_layout, translated

DEFAULT_BLOCK_SIZE = 32


def _choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name}={value!r}", needed=f"one of {', '.join(map(repr, choices))}")


def _before_018(version: str | None) -> bool:
    """Whether a file's PEFT had the older series; PEFT has recorded its version since 0.18."""
    try:
        return version is None or Version(version.partition("@")[0]) < Version("0.18.0")
    except InvalidVersion as fault:
        raise ConfigError(f"peft_version={ascii(version)[:80]}", needed="a version of PEFT, or none") from fault


@dataclass
class OFTConfig(PeftOFTConfig):
    """How a model is adapted by rotations. Checked when it is made.

    Args:
        r: number of blocks in each layer; exclusive with ``oft_block_size``.
        oft_block_size: size of a block. ``OFTConfig()`` means 32, fitted to each layer.
        module_dropout: probability that a block is the identity, in training only.
        target_modules: names, a regular expression, ``"all-linear"``, or None for the architecture's default.
        fan_in_fan_out: weights of ``target_parameters`` are stored ``(in, out)``; ``Conv1D`` is recognised by itself.
        bias: ``"none"``, ``"all"`` or ``"oft_only"``: which biases are trained.
        exclude_modules: names or a regular expression, as ``target_modules``.
        init_weights: True starts from the identity, False from random rotations.
        layers_to_transform: indices of the layers to adapt; ``layers_pattern`` names their list.
        modules_to_save: further modules that are trained in full and saved.
        coft: keep every rotation within a ball of radius ``eps / sqrt(blocks)`` (Frobenius norm of the skew matrix).
        eps: freedom of COFT.
        block_share: one block for a whole layer.
        use_cayley_neumann: PEFT's truncated series instead of the exact map; it turns the other way and is not
            orthogonal, for files that were trained with it. ``num_cayley_neumann_terms`` is its length.
        rank_pattern: ``{name or regex: r}``; ``block_size_pattern``: ``{name or regex: block size}``.
        alpha_pattern: refused, OFT has no alpha; ignored with a warning when an old file carries it.
        side: ``"in"`` turns the inputs of a layer (``W' = W R^T``), ``"out"`` its outputs (``W' = R W``).
        magnitude: train a scale for each output neuron beside the rotation, 1 at first.
        scaled: divide the stored numbers by ``2 sqrt(b - 1)``, so that one learning rate fits every block size.
        block_size_fallback: ``"error"`` for a size that does not divide a layer, ``"nearest"`` for PEFT's nearest
        divisor.
            By default an error for a size that you gave, the nearest divisor for the default and for PEFT's configs.
        target_parameters: names of parameters without a module of their own (experts).
        neumann_series: ``"legacy"`` is the series of PEFT 0.16-0.17; files say it themselves.
        layer_settings: ``{exact module name: {field: value}}`` for layers that differ from the rest, with the keys of
            :mod:`orthotune.formats.layer_settings`; filled in when another tool's adapter is loaded.
        needs_orthotune_for: filled in when layers are adapted that stock PEFT computes differently or not at all.
        format_version: of the fields that PEFT does not have.

    Raises:
        ConfigError: two fields contradict each other, or a value has no meaning.

    Example:
        >>> OFTConfig(r=8).oft_block_size, OFTConfig().oft_block_size
        (0, 32)
    """

    r: int = 0
    oft_block_size: int | None = None
    module_dropout: float = 0.0
    target_modules: list[str] | set[str] | str | None = None
    fan_in_fan_out: bool = False
    bias: Literal["none", "all", "oft_only"] = "none"
    exclude_modules: list[str] | set[str] | str | None = None
    init_weights: bool = True
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    coft: bool = False
    eps: float = 6e-5
    block_share: bool = False
    use_cayley_neumann: bool = False
    num_cayley_neumann_terms: int = 5
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    block_size_pattern: dict[str, int] = field(default_factory=dict)
    side: Side = "in"
    magnitude: bool = False
    scaled: bool = False
    block_size_fallback: Literal["error", "nearest"] | None = None
    target_parameters: list[str] | None = None
    layer_settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    neumann_series: Literal["current", "legacy"] = "current"
    needs_orthotune_for: list[str] | None = None
    format_version: int = FORMAT_VERSION

    #: layer -> the frozen map that it gets instead of a rotation; part of a load, never of a file
    transforms: ClassVar[Mapping[str, FrozenMap]] = {}
    #: the config as PEFT before 0.16 wrote it, by which its tensors are read
    old_fields: ClassVar[Mapping[str, Any] | None] = None
    #: how many numbers the weights beside a config that was read from a folder are
    stored_numbers: ClassVar[int | None] = None
    #: whether its fields were saved: what they ask of another model is no mistake of the reader's
    read_from_file: ClassVar[bool] = False

    def __post_init__(self) -> None:
        # Only a config that was saved or dumped carries its type: users never pass it.
        kind = vars(self)["peft_type"]
        stored = kind is not None
        self.__dict__["read_from_file"] = stored
        if stored:
            _choice("peft_type", kind, (PeftType.OFT, "OFT", ORTHOTUNE_TYPE))
        if wrong := config_types.fault(vars(self)):
            raise ConfigError(f"{wrong[0]}={wrong[1]}", needed=wrong[2])
        old_version = self.peft_version
        try:
            PeftConfig.__post_init__(self)  # the class between knows neither our defaults nor our words
        except ValueError as fault:  # PEFT checks the kind of task
            raise ConfigError(f"task_type={ascii(self.task_type)[:80]}", got=str(fault)) from fault
        self.peft_type = PeftType.OFT
        self._set_size(stored)
        if stored and self.use_cayley_neumann:
            self.neumann_series = "legacy" if _before_018(old_version) else self.neumann_series
        if stored:
            self._drop_alpha()
        for name in ("rank_pattern", "block_size_pattern", "alpha_pattern"):
            setattr(self, name, getattr(self, name) or {})
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            setattr(self, name, set(value) if isinstance(value, (list, tuple)) else value)
        self._check()

    def _set_size(self, stored: bool) -> None:
        given = bool(self.r) or self.oft_block_size is not None
        if self.oft_block_size is None:
            self.oft_block_size = 0 if self.r else DEFAULT_BLOCK_SIZE
        if self.block_size_fallback is None:
            self.block_size_fallback = "error" if given and not stored else "nearest"
        for name, value in (("r", self.r), ("oft_block_size", self.oft_block_size)):
            if type(value) is not int or value < 0:
                raise ConfigError(f"{name}={value!r}", needed="a whole number, 0 to leave it to the other one")
        if bool(self.r) == bool(self.oft_block_size):
            raise ConfigError(
                f"r={self.r} and oft_block_size={self.oft_block_size}",
                needed="exactly one of them: r x oft_block_size is the width of a layer",
                do="Leave one out, or set it to 0",
            )

    def _drop_alpha(self) -> None:
        if self.alpha_pattern:
            warnings.warn(
                "alpha_pattern of the saved config is ignored: OFT has no alpha, and no version ever applied it.",
                stacklevel=4,
            )
            self.alpha_pattern = {}

    def _check(self) -> None:
        _choice("bias", self.bias, ("none", "all", "oft_only"))
        _choice("side", self.side, ("in", "out"))
        _choice("block_size_fallback", self.block_size_fallback, ("error", "nearest"))
        _choice("neumann_series", self.neumann_series, ("current", "legacy"))
        if not 0 <= self.module_dropout < 1:
            raise ConfigError(f"module_dropout={self.module_dropout}", needed="a probability from 0 to below 1")
        if not self.eps > 0:
            raise ConfigError(f"eps={self.eps}", needed="a radius above 0")
        terms = self.num_cayley_neumann_terms
        if type(terms) is not int or not 1 <= terms <= layer_settings.MOST_TERMS:
            needed = f"a whole number from 1 to {layer_settings.MOST_TERMS}"
            raise ConfigError(f"num_cayley_neumann_terms={str(terms)[:80]}", needed=needed)
        if (wrong := layer_settings.fault(self.layer_settings)) is not None:
            raise ConfigError("layer_settings", got=wrong, needed="{module name: {setting: value}}")
        if self.layers_pattern and self.layers_to_transform is None:
            raise ConfigError("layers_pattern without layers_to_transform", do="Say which layers to adapt")
        if self.alpha_pattern:
            raise ConfigError("alpha_pattern", needed="nothing: OFT has no alpha", do="Leave it out")
        if self.format_version > FORMAT_VERSION:
            raise ConfigError(
                f"an adapter of format version {self.format_version}",
                needed=f"at most {FORMAT_VERSION}",
                do="Upgrade orthotune",
            )

    def spec_for(self, layer: str) -> RotationSpec:
        """What the adapter is at a layer, settings of its own applied; sizes by pattern are chosen elsewhere."""
        return spec_of_fields(vars(self), layer)

    @classmethod
    def from_peft(cls, config: PeftConfig) -> OFTConfig:
        """Our config with the meaning of PEFT's own ``OFTConfig`` object; one of ours is returned as it is.

        Example:
            >>> from peft import OFTConfig as PeftOFTConfig
            >>> OFTConfig.from_peft(PeftOFTConfig(oft_block_size=8)).use_cayley_neumann
            True
        """
        if isinstance(config, cls):
            return config
        known = {f.name for f in fields(cls) if f.init}
        ours = cls(**{k: v for k, v in vars(config).items() if k in known})
        ours.auto_mapping = config.auto_mapping
        return ours

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any
    ) -> PeftConfig:
        """The config in a folder, whose weights are looked at, or of a name on the hub."""
        numbers = numbers_in(Path(pretrained_model_name_or_path, subfolder or ""))
        config = super().from_pretrained(pretrained_model_name_or_path, subfolder, **kwargs)
        vars(config)["stored_numbers"] = numbers
        return config

    @classmethod
    def from_peft_type(cls, **kwargs: Any) -> PeftConfig:
        """The config of saved fields; what PEFT before 0.16 wrote gets our fields of the same meaning."""
        layout = old_layout(kwargs)
        if layout is None:
            return super().from_peft_type(**kwargs)
        config = super().from_peft_type(**translated(kwargs, layout))
        vars(config)["old_fields"] = dict(kwargs)
        return config

    @classmethod
    def check_kwargs(cls, **kwargs: Any) -> dict[str, Any]:
        """Fields of a saved config, unchanged: every layout that PEFT ever wrote is accepted."""
        return kwargs

    def to_dict(self) -> dict[str, Any]:
        """What is saved: PEFT's fields, and ours only where they differ from their default.

        An adapter that stock PEFT would load as something else carries the type ``ORTHOTUNE``, which stock PEFT
        refuses.
        """
        return file_fields(super().to_dict())
