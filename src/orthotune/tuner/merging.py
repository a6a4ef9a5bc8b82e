"""Merging in a model: all layers or none, dequantizing layers, and warnings about losses by quantization."""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from orthotune.errors import MergeError
from orthotune.files.names import shortened
from orthotune.layers.base import OFTLayer
from orthotune.layers.parametrization.sharding import cannot_merge, refuse_parts
from orthotune.layers.quantized_linear import QuantizedLinear
from orthotune.quantized.dense import dense as dense_linear
from orthotune.quantized.gradient import detach
from orthotune.quantized.registry import library_of
from orthotune.tuner.tied import apart_in, put_back, roots, separate_values, untied


class MergingTuner(BaseTuner):
    """A tuner of :class:`OFTLayer` s that checks every layer before it merges."""

    #: configs that a merge has changed, with their values before
    _fields_before: list[tuple[Any, Any]] | None = None

    def _check_merge_allowed(self) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*tie_word_embeddings=True.*")
            super()._check_merge_allowed()

    def _check_merge(self, adapter_names: list[str] | None, safe: bool, dense: bool = False) -> None:
        """Raise before anything is changed; with ``dense``, quantized layers are not merged into."""
        refuse_replicated(self.model, dense)
        refuse_sharded(self.model)
        layers = {
            module: [n for n in adapter_names or module.active_adapters if n in module.oft_settings]
            for module in self.model.modules()
            if isinstance(module, OFTLayer)
        }
        layers = {layer: names for layer, names in layers.items() if names}
        in_place = [layer for layer in layers if not (dense and isinstance(layer, QuantizedLinear))]
        for layer in in_place:
            layer.check_mergeable(layers[layer])
        for layer in layers:
            if isinstance(layer, QuantizedLinear) and not dense:
                layer.rehearse(layers[layer], safe)  # only the library can quantize a weight
            elif safe:
                layer.merged_parameters(layers[layer], safe=True)

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Merge into the base weights after checking every layer; ``safe_merge`` also checks for values not finite."""
        self._check_merge(adapter_names, safe_merge)
        with warn_lost(self.model):
            super().merge_adapter(adapter_names=adapter_names, safe_merge=safe_merge)
        self._untie()

    def unmerge_adapter(self) -> None:
        """Undo the merge; weights and config are restored."""
        super().unmerge_adapter()
        self._tie_again()

    def _untie(self, unloaded: bool = False) -> None:
        """Record in configs which tied weights a merge took apart."""
        for root in roots(self.model):
            found = untied(root, apart_in(root))
            self._fields_before = [*(self._fields_before or []), *found.set()]
            if unloaded:
                separate_values(root, found.pairs)

    def _tie_again(self) -> None:
        put_back(self._fields_before or [])
        self._fields_before = None

    def merge_and_unload(
        self,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
        dequantize: bool = False,
    ) -> nn.Module:
        """The base model with adapters merged (the active ones by default) and no adapter layers left.

        Args:
            progressbar: show one.
            safe_merge: check for NaN and infinity before anything is changed.
            adapter_names: names of the adapters to merge.
            dequantize: every quantized layer becomes an ``nn.Linear``, merged in float32 and rounded to the dtype of
                the model's other weights; the model and its config are no longer marked as quantized.

        Raises:
            MergeError: a layer cannot merge; nothing was changed.
        """
        if dequantize:
            self._check_merge(adapter_names, safe_merge, dense=True)
            make_dense(self.model, adapter_names)
        return super().merge_and_unload(progressbar, safe_merge, adapter_names)

    def _unload_and_optionally_merge(self, merge: bool = True, **kwargs: Any) -> nn.Module:
        if merge:
            self._check_merge(kwargs.get("adapter_names"), bool(kwargs.get("safe_merge")))
        # The host unties the top of a config, also of a model that reads more out of it: from here, all at once.
        self._tie_again()
        before = [(root.config, root.config.tie_word_embeddings) for root in roots(self.model)
                if hasattr(root.config, "tie_word_embeddings")]  # fmt: skip
        with warn_lost(self.model):
            unloaded = super()._unload_and_optionally_merge(merge=merge, **kwargs)
        put_back(before)
        if merge:
            self._untie(unloaded=True)
        for module in unloaded.modules():
            detach(module)
        return unloaded


def refuse_replicated(model: nn.Module, dense: bool = False) -> None:
    """Refuse a base layer that is used in several places, where a merge in one would change the others.

    With ``dense``, quantized layers are allowed, because each of their uses gets a separate layer.

    Raises:
        MergeError: a layer is used in several places; names them.
    """
    layers = [module for module in model.modules() if isinstance(module, OFTLayer)]
    adapted = {id(m.get_base_layer()) for m in layers if not (dense and isinstance(m, QuantizedLinear))}
    places: dict[int, dict[int, str]] = defaultdict(dict)
    for key, module in model.named_modules(remove_duplicate=False):
        if id(module) in adapted:
            owner = model.get_submodule(key.rpartition(".")[0])
            places[id(module)].setdefault(id(owner), key.removesuffix(".base_layer"))
    shared = [list(owners.values()) for owners in places.values() if len(owners) > 1]
    if shared:
        raise MergeError(
            "Cannot merge OFT layers when base model layers are replicated",
            got=f"one layer at {shortened(shared[0])}",
            do="Nothing was changed. Copy the layer for each use (copy.deepcopy), or keep the adapter unmerged",
        )


def refuse_sharded(model: nn.Module) -> None:
    """Refuse a model that FSDP2 shards: changes of a gathered weight are lost when it is sharded again.

    Raises:
        MergeError: names a layer.
    """
    sharded = any(hasattr(module, "unshard") and hasattr(module, "reshard") for module in model.modules())
    for name, module in model.named_modules():
        if isinstance(module, OFTLayer):
            if sharded:
                raise cannot_merge(name, "that FSDP2 shards")
            refuse_parts(name, module.base_parameters())


@contextmanager
def warn_lost(model: nn.Module) -> Iterator[None]:
    """Warn after a merge about layers in which the quantization error is at least as large as the rotation's change."""
    layers = [module for module in model.modules() if isinstance(module, QuantizedLinear)]
    before = {id(layer): layer.merge_error for layer in layers}
    yield
    lost = []
    for layer in layers:
        found = layer.merge_error
        if found is not None and found is not before[id(layer)] and found[0] >= found[1] > 1e-6:
            lost.append(next(iter(layer.oft_settings.values())).layer)
    if lost:
        warnings.warn(
            f"In {len(lost)} of {len(layers)} quantized layers the rotation is smaller than the steps of the quantized "
            "values, and the merged weight is not nearer to the rotated one than the weight before: "
            f"{shortened(lost)}. merge_and_unload(dequantize=True) preserves the rotation.",
            stacklevel=4,
        )


def make_dense(model: nn.Module, adapter_names: list[str] | None) -> None:
    """Replace every quantized layer of ``model``, adapted or not, by an ``nn.Linear``.

    Args:
        model: its layers are replaced in place.
        adapter_names: adapters to merge; the active ones by default. Merged adapters stay merged.
    """
    dtype, made = float_dtype(model), dict[int, nn.Linear]()
    for key, module in list(model.named_modules(remove_duplicate=False)):
        library = None if isinstance(module, OFTLayer) else library_of(module)
        inside = key.rpartition(".")[2] == "base_layer"  # replaced with the adapter around it
        if inside or not (isinstance(module, QuantizedLinear) or library):
            continue
        if id(module) not in made:
            if isinstance(module, QuantizedLinear):
                names = [name for name in adapter_names or module.active_adapters if module.rotations(name)]
                made[id(module)] = module.dense(names, dtype)
            elif library:
                made[id(module)] = dense_linear(module, library, dtype)
        parent, _, name = key.rpartition(".")
        setattr(model.get_submodule(parent), name, made[id(module)])
    forget_quantization(model)


def float_dtype(model: nn.Module) -> torch.dtype:
    """The dtype of most unquantized parameters, in which the other layers compute.

    Example:
        >>> float_dtype(nn.Linear(2, 2, dtype=torch.bfloat16))
        torch.bfloat16
    """
    counts: Counter[torch.dtype] = Counter()
    for module in model.modules():
        if not isinstance(module, OFTLayer) and library_of(module) is None:
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.dtype.is_floating_point and parameter.dtype.itemsize > 1 and "oft_" not in name:
                    counts[parameter.dtype] += parameter.numel()
    return counts.most_common(1)[0][0] if counts else torch.float32


def forget_quantization(model: nn.Module) -> None:
    """Remove the quantization fields of transformers and diffusers, so that the saved model loads unquantized."""
    for owner in model.modules():
        config: Any = getattr(owner, "config", None)
        if isinstance(config, Mapping) and "quantization_config" in config:  # diffusers' frozen dictionary
            kept = {key: value for key, value in config.items() if key != "quantization_config"}
            owner._internal_dict = type(config)(kept)  # type: ignore[assignment, call-arg]
        elif hasattr(config, "quantization_config"):
            del config.quantization_config
        if hasattr(config, "_is_quantized"):
            del config._is_quantized
        for name in ("hf_quantizer", "quantization_method", "quantization_config"):
            owner.__dict__.pop(name, None)
        for name in ("is_quantized", "is_loaded_in_4bit", "is_loaded_in_8bit", "hqq_quantized"):
            if name in owner.__dict__:
                setattr(owner, name, False)
