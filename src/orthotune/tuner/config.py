"""The configuration: all fields of PEFT's OFT and further ones, their form in files, and settings by layer."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from packaging.version import InvalidVersion, Version
from peft import OFTConfig as PeftOFTConfig
from peft import PeftConfig
from peft.utils import PeftType
from torch import nn

from orthotune.errors import ConfigError
from orthotune.formats.adapter_file import numbers_in
from orthotune.formats.peft import config_types, layer_settings
from orthotune.formats.peft.beyond_stock import ASSUMED, FORMAT_VERSION, ORTHOTUNE_TYPE
from orthotune.formats.peft.fields import spec_of_fields
from orthotune.formats.peft.sizes import size_key_means
from orthotune.layers.settings import LayerSettings
from orthotune.rotation.family_registry import PUBLISHED, family_of, refuse_contradictions
from orthotune.rotation.frozen import FrozenMap
from orthotune.rotation.spec import ConvLayout, RotationSpec, Side
from orthotune.tuner.old_files import old_layout, translated
from orthotune.tuner.places import adapted_layers
from orthotune.tuner.published_configs import fields_of_published

DEFAULT_BLOCK_SIZE = 32
#: never written: they decide how sizes are chosen, and a file holds the chosen sizes
UNWRITTEN = ("block_size_fallback", "alpha_pattern")


@dataclass(frozen=True)
class LoadContext:
    """Facts about the file that a config was read from, in addition to its fields.

    A config carries this as an ordinary attribute, not as a field, so it is never saved, printed or compared. PEFT
    creates the config, the layers and the state dict in three separate calls (``OFTConfig.from_pretrained``,
    ``OFTModel(model,
    config)``, ``_remap_adapter_state_dict_for_load(model, config, ...)``), and the config is the only object that it
    passes to all of them. The facts stay valid for the lifetime of the config, which may serve several models.

    Attributes:
        saved: whether the fields come from a file; names that the model does not have are then not a user's mistake.
        old_fields: the config as PEFT before 0.16 wrote it, needed to read the tensors of that file.
        stored_numbers: number of elements in the weight file beside the config; None if it was not opened.
        frozen_maps: layer -> the frozen map that replaces its rotation.
    """

    saved: bool = False
    old_fields: Mapping[str, Any] | None = None
    stored_numbers: int | None = None
    frozen_maps: Mapping[str, FrozenMap] = field(default_factory=dict)


def _choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name}={value!r}", needed=f"one of {', '.join(map(repr, choices))}")


def _before_018(version: str | None) -> bool:
    """Whether the PEFT version of a file had the older series; PEFT records its version since 0.18."""
    try:
        return version is None or Version(version.partition("@")[0]) < Version("0.18.0")
    except InvalidVersion as fault:
        raise ConfigError(f"peft_version={ascii(version)[:80]}", needed="a version of PEFT, or none") from fault


@dataclass
class OFTConfig(PeftOFTConfig):
    """Configuration of an OFT adapter. The fields are checked on creation.

    Args:
        transform: the orthogonal transform, by its name (:data:`~orthotune.rotation.family_registry.FAMILY`) or by that
            of its publication, which also sets the fields that it means (``PUBLISHED`` there): ``"blocks"`` (OFT),
            ``"reflections"`` (HRA), ``"butterfly"`` (BOFT), ``"planes"`` (RoAd), ``"givens"`` (GOFT),
            ``"subspace"`` (PSOFT), ``"hyperplane"`` (ETHER).
        variant: variant of a transform that has several; "" for its usual one.
        factors: number of stages of a butterfly; 0 for its default.
        r: number of blocks in each layer; exclusive with ``oft_block_size``. The rank of a transform that has one: the
            number of reflections, or of the dimensions of a subspace.
        oft_block_size: size of a block. ``OFTConfig()`` takes 32, or the nearest divisor of each layer's width.
        module_dropout: probability that a block is the identity, in training only.
        target_modules: names, a regular expression, ``"all-linear"``, or None for the architecture's default.
        fan_in_fan_out: weights of ``target_parameters`` are stored ``(in, out)``; ``Conv1D`` is recognised.
        bias: ``"none"``, ``"all"`` or ``"oft_only"``: which biases are trained.
        exclude_modules: names or a regular expression, as ``target_modules``.
        init_weights: True starts from the identity, False from random rotations.
        layers_to_transform: indices of the layers to adapt; ``layers_pattern`` names their list.
        modules_to_save: further modules that are trained in full and saved.
        coft: keep every rotation within a radius of ``eps / sqrt(blocks)`` (Frobenius norm of the skew matrix).
        eps: the COFT radius is ``eps / sqrt(blocks)``.
        block_share: all blocks of a layer are the same one.
        use_cayley_neumann: PEFT's truncated Neumann series instead of the exact map, for files that were trained with
            it. It rotates in the opposite direction and is not orthogonal.
        num_cayley_neumann_terms: number of terms of the series.
        rank_pattern: ``{name or regex: r}``.
        block_size_pattern: ``{name or regex: block size}``.
        alpha_pattern: an error, because OFT has no alpha; in an old file it is ignored with a warning.
        side: ``"in"`` rotates the inputs of a layer (``W' = W R^T``), ``"out"`` its outputs (``W' = R W``).
        conv: what ``side="in"`` rotates in a convolution: ``"kernel"``, all that the kernel sees (``in * kernel``), or
            ``"channels"``, the channels of the input, the same way at every point of the kernel.
        magnitude: train a scale for each output neuron beside the rotation, 1 at first.
        scaled: divide the parameters by ``2 sqrt(b - 1)``, so that one learning rate fits every block size.
        block_size_fallback: for a size that does not divide a layer: ``"error"``, or ``"nearest"`` for the nearest
            divisor. Default: an error for a given size, the nearest divisor for the default size and for PEFT's
            configs.
        target_parameters: names of parameters without a module of their own (experts).
        neumann_series: ``"legacy"`` is the series of PEFT 0.16-0.17; read from the file.
        layer_settings: ``{exact module name: {field: value}}`` for layers that differ from the rest, with the keys of
            :mod:`orthotune.formats.peft.layer_settings`; set when another tool's adapter is loaded.
        needs_orthotune_for: set when layers are adapted that stock PEFT computes differently or not at all.
        format_version: version of the fields that PEFT does not have.

    Raises:
        ConfigError: two fields contradict each other, or a value is not allowed.

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
    transform: str = "blocks"
    variant: str = ""
    factors: int = 0
    side: Side = "in"
    conv: ConvLayout = "kernel"
    magnitude: bool = False
    scaled: bool = False
    block_size_fallback: Literal["error", "nearest"] | None = None
    target_parameters: list[str] | None = None
    layer_settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    neumann_series: Literal["current", "legacy"] = "current"
    needs_orthotune_for: list[str] | None = None
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        # Only a config that was saved or dumped carries its type: users never pass it.
        kind = vars(self)["peft_type"]
        stored = kind is not None
        self.load_context = LoadContext(saved=stored)
        if stored:
            _choice("peft_type", kind, (PeftType.OFT, "OFT", ORTHOTUNE_TYPE))
        if wrong := config_types.fault(vars(self)):
            raise ConfigError(f"{wrong[0]}={wrong[1]}", needed=wrong[2])
        old_version = self.peft_version
        try:
            PeftConfig.__post_init__(self)  # skips PEFT's OFTConfig, whose defaults and messages differ
        except ValueError as fault:  # PEFT checks the kind of task
            raise ConfigError(f"task_type={ascii(self.task_type)[:80]}", got=str(fault)) from fault
        self.peft_type = PeftType.OFT
        self._set_transform()
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

    def _set_transform(self) -> None:
        if self.transform in PUBLISHED:
            self.transform, meant = PUBLISHED[self.transform]
            for name, value in meant.items():
                # A field that the caller has set otherwise than by default keeps its value.
                setattr(self, name, value if name in ("side", "init_weights") else getattr(self, name) or value)
        kind = family_of(self.transform)
        refuse_contradictions(vars(self), kind)
        if kind is not None and kind.ranked:
            self.r, self.oft_block_size = self.r or kind.default_rank, 0
        if kind is not None:
            self.factors = self.factors or kind.default_factors
            self.variant = self.variant or kind.variants[0]

    def _set_size(self, stored: bool) -> None:
        given = bool(self.r) or self.oft_block_size is not None
        if self.oft_block_size is None:
            self.oft_block_size = 0 if self.r else DEFAULT_BLOCK_SIZE
        if self.block_size_fallback is None:
            self.block_size_fallback = "error" if given and not stored else "nearest"
        for name, value in (("r", self.r), ("oft_block_size", self.oft_block_size)):
            if type(value) is not int or value < 0:
                raise ConfigError(f"{name}={value!r}", needed="a whole number; 0 if the other field is set")
        if bool(self.r) == bool(self.oft_block_size):
            raise ConfigError(
                f"r={self.r} and oft_block_size={self.oft_block_size}",
                needed="exactly one of them: r x oft_block_size is the width of a layer",
                do="Omit one of them, or set it to 0",
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
        _choice("conv", self.conv, ("kernel", "channels"))
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
        if self.conv == "channels" and self.side == "out":
            raise ConfigError(
                "conv='channels'", got="side='out', which rotates the channels of a convolution's output",
                needed="side='in': conv is what a rotation of the inputs rotates", do="Leave one of the two out",
            )  # fmt: skip
        if self.layers_pattern and self.layers_to_transform is None:
            raise ConfigError(
                "layers_pattern without layers_to_transform", do="Set layers_to_transform to the layers to adapt"
            )
        if self.alpha_pattern:
            raise ConfigError("alpha_pattern", needed="no value: OFT has no alpha", do="Omit alpha_pattern")
        if self.format_version > FORMAT_VERSION:
            raise ConfigError(
                f"an adapter of format version {self.format_version}",
                needed=f"at most {FORMAT_VERSION}",
                do="Upgrade orthotune",
            )

    def spec_for(self, layer: str) -> RotationSpec:
        """The spec of a layer, with its ``layer_settings``; sizes by pattern are chosen in :func:`settings_for`."""
        return spec_of_fields(vars(self), layer)

    @classmethod
    def from_peft(cls, config: PeftConfig) -> OFTConfig:
        """The orthotune config for a config object of PEFT: of OFT, HRA, BOFT, RoAd or PSOFT.

        An orthotune config is returned unchanged.

        Example:
            >>> from peft import OFTConfig as PeftOFTConfig
            >>> OFTConfig.from_peft(PeftOFTConfig(oft_block_size=8)).use_cayley_neumann
            True
        """
        if isinstance(config, cls):
            return config
        known = {f.name for f in fields(cls) if f.init}
        given = fields_of_published(config)
        ours = cls(**({k: v for k, v in vars(config).items() if k in known} if given is None else given))
        ours.auto_mapping = config.auto_mapping
        ours.load_context = LoadContext()  # a PEFT object has a type although it was not saved
        return ours

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any
    ) -> PeftConfig:
        """Read the config of a folder, and the size of the weights beside it, or of a name on the hub."""
        elements = numbers_in(Path(pretrained_model_name_or_path, subfolder or ""))
        config = super().from_pretrained(pretrained_model_name_or_path, subfolder, **kwargs)
        if isinstance(config, OFTConfig):  # the file may be of another method
            config.load_context = replace(config.load_context, stored_numbers=elements)
        return config

    @classmethod
    def from_peft_type(cls, **kwargs: Any) -> PeftConfig:
        """The config of saved fields; fields of PEFT before 0.16 are translated."""
        layout = old_layout(kwargs)
        if layout is None:
            return super().from_peft_type(**kwargs)
        config = super().from_peft_type(**translated(kwargs, layout))
        if isinstance(config, OFTConfig):
            config.load_context = replace(config.load_context, old_fields=dict(kwargs))
        return config

    @classmethod
    def check_kwargs(cls, **kwargs: Any) -> dict[str, Any]:
        """Fields of a saved config, unchanged: every layout that PEFT ever wrote is accepted."""
        return kwargs

    def to_dict(self) -> dict[str, Any]:
        """The saved fields: those of PEFT, and further ones only where they differ from their default.

        An adapter that stock PEFT would load as something else carries the type ``ORTHOTUNE``, which stock PEFT
        refuses.
        """
        return file_fields(super().to_dict())


def file_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """The saved form of a config's fields: type ``OFT`` if stock PEFT computes the same, else ``ORTHOTUNE``.

    Example:
        >>> file_fields({"peft_type": "OFT", "side": "out"})["peft_type"]
        'ORTHOTUNE'
    """
    fields = {k: v for k, v in fields.items() if k not in UNWRITTEN}
    beyond = {k: v for k, v in fields.items() if k in ASSUMED and (v or None) != (ASSUMED[k] or None)}
    fields = {k: v for k, v in fields.items() if k not in ASSUMED} | beyond
    fields["peft_type"] = ORTHOTUNE_TYPE if beyond else PeftType.OFT
    if not beyond:
        fields.pop("format_version", None)
    # A set has no order of its own, and the same config must give the same file.
    return {k: sorted(v) if isinstance(v, set) else v for k, v in fields.items()}


def _size_of(pattern: Mapping[str, int], layer: str) -> int | None:
    """The size of a layer: that of the first key that matches the layer."""
    return next((size for key, size in pattern.items() if size_key_means(key, layer)), None)


def settings_for(config: OFTConfig, layer: str) -> LayerSettings:
    """The settings of ``layer`` in ``config``, with patterns and ``layer_settings`` applied.

    Raises:
        ConfigError: both patterns give the layer a size.

    Example:
        >>> settings_for(OFTConfig(block_size_pattern={"q_proj": 8}), "layers.0.q_proj").spec.block_size
        8
    """
    frozen = config.load_context.frozen_maps.get(layer)
    if frozen is not None:
        return LayerSettings(layer, RotationSpec(side=frozen.side), frozen=frozen)
    r, block_size = config.r, config.oft_block_size or 0
    fallback = config.block_size_fallback or "nearest"
    own_r, own_size = _size_of(config.rank_pattern, layer), _size_of(config.block_size_pattern, layer)
    if own_r is not None and own_size is not None:
        raise ConfigError(
            f"layer '{layer}'",
            got=f"r={own_r} from rank_pattern and block size {own_size} from block_size_pattern",
            needed="one of the two",
        )
    if own_r is not None:
        r, block_size = own_r, 0
    elif own_size is not None:
        r, block_size = 0, own_size
    kind = family_of(config.transform)
    if kind is not None and kind.ranked and own_size is not None:
        raise ConfigError(
            f"block_size_pattern for layer '{layer}'", got=f"transform='{config.transform}', which has no blocks",
            do="Use rank_pattern",
        )  # fmt: skip
    for name, value in (("rank_pattern", own_r), ("block_size_pattern", own_size)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ConfigError(f"{name} for layer '{layer}': {value!r}", needed="a whole number above 0")
    own = config.layer_settings.get(layer, {})
    if "r" in own or "block_size" in own:
        r, block_size = own.get("r", 0), own.get("block_size", 0)
    spec = replace(config.spec_for(layer), block_size=block_size)
    if kind is not None and kind.ranked:
        r = spec.rank if own_r is None else own_r
    return LayerSettings(layer, spec, r, fallback, config.init_weights)


def settings_by_names(config: OFTConfig, names: Sequence[str]) -> LayerSettings:
    """The settings of a layer with several names: those of the first name that the config mentions.

    Args:
        config: patterns and settings by name.
        names: the names of one module; messages use the first.

    Raises:
        ConfigError: see :func:`settings_for`.
    """
    mentioned = [name for name in names if name in config.layer_settings or name in config.load_context.frozen_maps]
    for pattern in (config.rank_pattern, config.block_size_pattern):
        mentioned += [name for name in names if _size_of(pattern, name) is not None]
    return settings_for(config, mentioned[0] if mentioned else names[0])


def settle_order(config: OFTConfig, adapter_name: str, model: nn.Module) -> None:
    """Replace patterns whose order matters by full layer names, because a file sorts the keys alphabetically.

    Args:
        config: config of an adapter in the model; its patterns have the same effect afterwards.
        adapter_name: the adapter.
        model: the adapted model.
    """
    layers = [layer.oft_settings[adapter_name].layer for _, layer in adapted_layers(model, adapter_name)]
    for field_name in ("rank_pattern", "block_size_pattern"):
        pattern = getattr(config, field_name)
        sizes = {name: _size_of(pattern, name) for name in layers}
        if any(_size_of(dict(sorted(pattern.items())), name) != size for name, size in sizes.items()):
            exact = {f"^{re.escape(name)}": size for name, size in sizes.items() if size is not None}
            setattr(config, field_name, exact)
