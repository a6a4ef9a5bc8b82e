"""The configuration: every field that PEFT's OFT ever had and ours, what a file has of them, and what a layer gets."""

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
from orthotune.layers.settings import LayerSettings
from orthotune.rotation.frozen import FrozenMap
from orthotune.rotation.spec import RotationSpec, Side
from orthotune.tuner.old_files import old_layout, translated
from orthotune.tuner.places import adapted_layers

DEFAULT_BLOCK_SIZE = 32
#: never written: they say how a size was chosen, and a file holds the chosen sizes
UNWRITTEN = ("block_size_fallback", "alpha_pattern")


@dataclass(frozen=True)
class LoadContext:
    """What is known of the file that a config was read from, beside its fields.

    A config carries it as an ordinary attribute, which is no field and so is never saved, printed or compared. It has
    to be there: PEFT's host makes the config, the layers and the state dict in three separate calls, in each of which
    the config is the only thing of the file that it passes on (``OFTConfig.from_pretrained``, ``OFTModel(model,
    config)``, ``_remap_adapter_state_dict_for_load(model, config, ...)``). It stays true for as long as the config
    lives, which may be used for several models.

    Attributes:
        saved: the fields were saved: what they name and another model does not have is no mistake of the reader's.
        old_fields: the config as PEFT before 0.16 wrote it, by which the tensors of that file are read.
        stored_numbers: how many numbers the weights beside the config are; None when they were not looked at.
        frozen_maps: layer -> the frozen map that it gets instead of a rotation.
    """

    saved: bool = False
    old_fields: Mapping[str, Any] | None = None
    stored_numbers: int | None = None
    frozen_maps: Mapping[str, FrozenMap] = field(default_factory=dict)


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
        coft: keep every rotation within a radius of ``eps / sqrt(blocks)`` (Frobenius norm of the skew matrix).
        eps: freedom of COFT.
        block_share: all blocks of a layer are the same one.
        use_cayley_neumann: PEFT's truncated series instead of the exact map; it rotates the other way and is not
            orthogonal, for files that were trained with it. ``num_cayley_neumann_terms`` is its length.
        rank_pattern: ``{name or regex: r}``; ``block_size_pattern``: ``{name or regex: block size}``.
        alpha_pattern: refused, OFT has no alpha; ignored with a warning when an old file carries it.
        side: ``"in"`` rotates the inputs of a layer (``W' = W R^T``), ``"out"`` its outputs (``W' = R W``).
        magnitude: train a scale for each output neuron beside the rotation, 1 at first.
        scaled: divide the stored numbers by ``2 sqrt(b - 1)``, so that one learning rate fits every block size.
        block_size_fallback: ``"error"`` for a size that does not divide a layer, ``"nearest"`` for PEFT's nearest
            divisor. By default an error for a size that you gave, the nearest divisor for the default and for PEFT's
            configs.
        target_parameters: names of parameters without a module of their own (experts).
        neumann_series: ``"legacy"`` is the series of PEFT 0.16-0.17; read from the file.
        layer_settings: ``{exact module name: {field: value}}`` for layers that differ from the rest, with the keys of
            :mod:`orthotune.formats.peft.layer_settings`; filled in when another tool's adapter is loaded.
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
            PeftConfig.__post_init__(self)  # the class between has neither our defaults nor our messages
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
        ours.load_context = LoadContext()  # an object of PEFT's carries its type, and was made by hand all the same
        return ours

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any
    ) -> PeftConfig:
        """The config in a folder, whose weights are looked at, or of a name on the hub."""
        numbers = numbers_in(Path(pretrained_model_name_or_path, subfolder or ""))
        config = super().from_pretrained(pretrained_model_name_or_path, subfolder, **kwargs)
        if isinstance(config, OFTConfig):  # the file may be of another method
            config.load_context = replace(config.load_context, stored_numbers=numbers)
        return config

    @classmethod
    def from_peft_type(cls, **kwargs: Any) -> PeftConfig:
        """The config of saved fields; what PEFT before 0.16 wrote gets our fields of the same meaning."""
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
        """What is saved: PEFT's fields, and ours only where they differ from their default.

        An adapter that stock PEFT would load as something else carries the type ``ORTHOTUNE``, which stock PEFT
        refuses.
        """
        return file_fields(super().to_dict())


def file_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """The saved form of a config's fields: type ``OFT`` when stock PEFT means the same by it, else ``ORTHOTUNE``.

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
    """The size of a layer: that of the first key that means it."""
    return next((size for key, size in pattern.items() if size_key_means(key, layer)), None)


def size_key_means(key: str, layer: str) -> bool:
    """Whether a key of ``rank_pattern`` or ``block_size_pattern`` means a layer: the end of its name, or a regex.

    Example:
        >>> size_key_means("q_proj", "layers.0.q_proj"), size_key_means("q.*", "layers.0.my_q_proj")
        (True, False)
    """
    return re.match(rf"(.*\.)?({key})$", layer) is not None


def settings_for(config: OFTConfig, layer: str) -> LayerSettings:
    """What ``config`` asks of ``layer``, patterns and settings of its own applied.

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
    for name, value in (("rank_pattern", own_r), ("block_size_pattern", own_size)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ConfigError(f"{name} for layer '{layer}': {value!r}", needed="a whole number above 0")
    own = config.layer_settings.get(layer, {})
    if "r" in own or "block_size" in own:
        r, block_size = own.get("r", 0), own.get("block_size", 0)
    spec = replace(config.spec_for(layer), block_size=block_size)
    return LayerSettings(layer, spec, r, fallback, config.init_weights)


def settings_by_names(config: OFTConfig, names: Sequence[str]) -> LayerSettings:
    """What ``config`` asks of a layer with several names: the first of them that the config mentions counts.

    Args:
        config: patterns and settings by name.
        names: of one module; the first is the one in messages.

    Raises:
        ConfigError: see :func:`settings_for`.
    """
    mentioned = [name for name in names if name in config.layer_settings or name in config.load_context.frozen_maps]
    for pattern in (config.rank_pattern, config.block_size_pattern):
        mentioned += [name for name in names if _size_of(pattern, name) is not None]
    return settings_for(config, mentioned[0] if mentioned else names[0])


def settle_order(config: OFTConfig, adapter_name: str, model: nn.Module) -> None:
    """Name layers in full in patterns whose order counts: a file has the keys of a config in the order of letters.

    Args:
        config: its adapter is in the model; its patterns mean the same afterwards.
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
