"""Nodes that load adapters of orthogonal finetuning into ComfyUI's models, at strengths that are partial rotations.

ComfyUI keeps a list of patches for each weight and computes the weight when the model is loaded; taking a patch away
restores the original. Each patch here is an object that computes the rotated weight from the weight that it gets, as
``comfy.weight_adapter`` has them: nothing is approximated, and no change of a full model is held in memory.

Source of the interface: ComfyUI ``comfy/model_patcher.py`` (``clone``, ``add_patches``, ``model_state_dict``),
``comfy/lora.py`` (``model_lora_keys_unet``, ``model_lora_keys_clip``, ``calculate_weight``) and
``comfy/weight_adapter/base.py``, state of 2026.
"""

from __future__ import annotations

import fnmatch
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.lora
import folder_paths
import torch
from comfy.weight_adapter import WeightAdapterBase

from orthotune.errors import ConfigError, UnsupportedLayerError
from orthotune.files.names import shortened
from orthotune.formats.adapter_file import CONFIG_NAME
from orthotune.formats.names.spelling import spellings
from orthotune.operations.adapter import Adapter, read_once
from orthotune.operations.checkpoint.combine_files import combine_states
from orthotune.operations.weight_patches import WeightPatch, weight_patches
from orthotune.tuner.combination import Combination

CATEGORY = "loaders/orthotune"
#: Choices of a node -> kinds of strength of orthotune.
KINDS = {"partial rotation": "geodesic", "as the file's own tool": None, "linear": "linear"}
STRENGTH = ("FLOAT", {"default": 1.0, "min": -10.0, "max": 10.0, "step": 0.01})
BLOCKS = (
    "STRING",
    {"default": "", "multiline": True, "tooltip": "A factor for some layers, one a line: *double_blocks.3.* = 0.5"},
)


class RotatedWeight(WeightAdapterBase):
    """The patch of one weight."""

    name = "orthotune"

    def __init__(self, patch: WeightPatch) -> None:
        self.patch = patch
        self.loaded_keys: set[str] = set()
        self.weights: list[Any] = []

    def calculate_weight(
        self,
        weight: torch.Tensor,
        key: str,
        strength: float,
        strength_model: float,
        offset: Any,
        function: Any,
        intermediate_dtype: torch.dtype = torch.float32,
        original_weight: Any = None,
    ) -> torch.Tensor:
        """The weight, rotated in place: of rows of a larger weight, ComfyUI keeps what is in their memory.

        Args:
            weight: the weight after the patches before this one.
            key: its name.
            strength: of the patch; hooks of ComfyUI change it over the steps.
            strength_model: has been applied by the caller.
            offset: has been applied by the caller.
            function: of values that are added, which these are not.
            intermediate_dtype: of the computation; rotations are computed in float32 at least.
            original_weight: the weights before all patches.
        """
        return weight.copy_(self.patch.apply(weight, strength)) if strength else weight


class LoadOFT:
    """An adapter file on a model, and on its text encoders."""

    CATEGORY = CATEGORY
    FUNCTION = "load"
    RETURN_TYPES = ("MODEL", "CLIP")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs and their widgets."""
        return {
            "required": {
                "model": ("MODEL",),
                "adapter": (folder_paths.get_filename_list("loras"),),
                "strength": STRENGTH,
                "kind": (list(KINDS),),
            },
            "optional": {"clip": ("CLIP",), "blocks": BLOCKS},
        }

    def load(
        self, model: Any, adapter: str, strength: float, kind: str, clip: Any = None, blocks: str = ""
    ) -> tuple[Any, Any]:
        """The patched model and text encoders; those that came in stay as they are."""
        return patched(model, clip, opened(adapter), strength, kind, blocks)


class ReadOFT:
    """An adapter file alone, to be combined or applied."""

    CATEGORY = CATEGORY
    FUNCTION = "read"
    RETURN_TYPES = ("OFT",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs and their widgets."""
        return {"required": {"adapter": (folder_paths.get_filename_list("loras"),)}}

    def read(self, adapter: str) -> tuple[Adapter]:
        """The adapter."""
        return (opened(adapter),)


class CombineOFT:
    """Two adapters made into one."""

    CATEGORY = CATEGORY
    FUNCTION = "combine"
    RETURN_TYPES = ("OFT",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs and their widgets."""
        return {
            "required": {
                "first": ("OFT",),
                "second": ("OFT",),
                "first_weight": STRENGTH,
                "second_weight": STRENGTH,
                "method": (["geodesic", "product", "tangent"],),
            }
        }

    def combine(
        self, first: Adapter, second: Adapter, first_weight: float, second_weight: float, method: str
    ) -> tuple[Adapter]:
        """One adapter with the rotations of both, as ``orthotune combine`` writes it."""
        how: Any = method
        state = combine_states([first.state, second.state], Combination((first_weight, second_weight), how))
        return (replace(first, state=state),)


class ApplyOFT:
    """An adapter that was read or combined, on a model and its text encoders."""

    CATEGORY = CATEGORY
    FUNCTION = "apply"
    RETURN_TYPES = ("MODEL", "CLIP")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs and their widgets."""
        return {
            "required": {"model": ("MODEL",), "oft": ("OFT",), "strength": STRENGTH, "kind": (list(KINDS),)},
            "optional": {"clip": ("CLIP",), "blocks": BLOCKS},
        }

    def apply(
        self, model: Any, oft: Adapter, strength: float, kind: str, clip: Any = None, blocks: str = ""
    ) -> tuple[Any, Any]:
        """The patched model and text encoders; those that came in stay as they are."""
        return patched(model, clip, oft, strength, kind, blocks)


NODE_CLASS_MAPPINGS = {
    "OrthotuneLoadOFT": LoadOFT,
    "OrthotuneReadOFT": ReadOFT,
    "OrthotuneCombineOFT": CombineOFT,
    "OrthotuneApplyOFT": ApplyOFT,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "OrthotuneLoadOFT": "Load OFT (orthotune)",
    "OrthotuneReadOFT": "Read OFT (orthotune)",
    "OrthotuneCombineOFT": "Combine OFT (orthotune)",
    "OrthotuneApplyOFT": "Apply OFT (orthotune)",
}


def opened(name: str) -> Adapter:
    """The adapter in one of ComfyUI's folders of LoRAs; of a folder of PEFT, the file inside is chosen."""
    path = Path(folder_paths.get_full_path_or_raise("loras", name))
    return read_once(path.parent if (path.parent / CONFIG_NAME).is_file() else path)


def patched(model: Any, clip: Any, adapter: Adapter, strength: float, kind: str, blocks: str) -> tuple[Any, Any]:
    """Clones of a model and of its text encoders with the patches of an adapter.

    Args:
        model: ComfyUI's patcher of the denoiser.
        clip: its text encoders; None leaves the adapter's layers of text encoders away.
        adapter: of any readable format.
        strength: 0 is the base, 1 the adapter as trained; in between lies what ``kind`` says.
        kind: one of :data:`KINDS`.
        blocks: lines ``PATTERN = FACTOR``; the last one whose pattern matches a layer multiplies its strength.

    Raises:
        AdapterFileError: the adapter does not fit the model.
        ConfigError: a line of ``blocks`` is malformed or matches no layer, or a strength has no meaning.
        UnsupportedLayerError: no layer of the adapter has a name that the model knows.
    """
    if strength == 0:
        return model, clip
    state = adapter.state
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    texts = {} if clip is None else comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {})
    # of the families whose names the layers can have, the one that this model knows
    families = spellings([*state.layers, *state.transforms], "comfyui")
    spelling = max(families, key=lambda one: sum(name in keys or name in texts for name in one.names.values()))
    if spelling.parts:
        raise UnsupportedLayerError(
            f"{adapter.path}", got=f"several layers for one weight of ComfyUI: {shortened(spelling.parts)}",
            needed="a layer for each", do="Write it for ComfyUI first: orthotune convert --to comfyui --base BASE",
        )  # fmt: skip
    weights = model.model_state_dict()
    encoders = {} if clip is None else clip.patcher.model_state_dict()
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    targets: dict[str, tuple[Any, bool]] = {}
    unknown = []
    for stem, (component, module) in spelling.places.items():
        text = component.startswith("text_encoder")
        target = (texts if text else keys).get(spelling.names[stem])
        key = target if isinstance(target, str) or target is None else target[0]
        known = encoders if text else weights
        if key is None or key not in known:
            unknown.append(stem)
            continue
        shape = tuple(known[key].shape)
        if not isinstance(target, str) and target[1] is not None:
            axis, _, count = target[1]
            shape = (*shape[:axis], count, *shape[axis + 1 :])
        component = component or "unet"
        shapes.setdefault(component, {})[module] = shape
        targets[f"{component}.{module}"] = (target, text)
    if not targets:
        raise UnsupportedLayerError(
            f"{adapter.path} on this model", got=f"{len(unknown)} layers that it does not have: {shortened(unknown)}",
            needed="an adapter of this family of models",
        )  # fmt: skip
    if unknown:
        logging.warning("%s: %d layers are not in this model: %s", adapter.path, len(unknown), shortened(unknown))
    factors = factors_of(blocks, {name: str(target) for name, (target, _) in targets.items()})
    if kind not in KINDS:
        raise ConfigError(f"kind={kind}", needed=" or ".join(KINDS))
    meant: Any = KINDS[kind]
    found = weight_patches(adapter, shapes, lambda name: strength * factors[name], meant)
    model, clip = model.clone(), None if clip is None else clip.clone()
    for holder, is_text in ((model, False), (clip, True)):
        own_patches = {
            targets[name][0]: RotatedWeight(patch) for name, patch in found.items() if targets[name][1] is is_text
        }
        if holder is not None and own_patches:
            holder.add_patches(own_patches, 1.0)
    return model, clip


def factors_of(blocks: str, layers: dict[str, str]) -> dict[str, float]:
    """The factor of each layer's strength.

    Args:
        blocks: lines ``PATTERN = FACTOR``; empty lines and those that begin with ``#`` are passed over.
        layers: layer -> the weight of ComfyUI that it changes; a pattern may match either.

    Raises:
        ConfigError: names the line.

    Example:
        >>> factors_of("*.3.* = 0.5", {"unet.blocks.3.lin": "diffusion_model.blocks.3.lin.weight"})
        {'unet.blocks.3.lin': 0.5}
    """
    found = dict.fromkeys(layers, 1.0)
    for number, line in enumerate(blocks.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        pattern, sign, value = (part.strip() for part in line.rpartition("="))
        try:
            factor = float(value)
        except ValueError:
            sign = ""
        if not sign or not pattern:
            raise ConfigError(
                f"blocks, line {number}: {line!r}", needed="PATTERN = FACTOR, as *double_blocks.3.* = 0.5"
            )
        matched = [name for name, key in layers.items() if any(fnmatch.fnmatch(one, pattern) for one in (name, key))]
        if not matched:
            raise ConfigError(
                f"blocks, line {number}: {pattern}", got="no layer of this name",
                needed=f"a pattern of names as {next(iter(layers))}",
            )  # fmt: skip
        found |= dict.fromkeys(matched, factor)
    return found
