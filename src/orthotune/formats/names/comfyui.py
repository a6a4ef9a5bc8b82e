"""The layer names that ComfyUI's loader knows, and those under which a layer is written for it.

Source: ComfyUI ``comfy/lora.py``, ``model_lora_keys_unet`` and ``model_lora_keys_clip``, and the maps
``*_to_diffusers`` of ``comfy/utils.py`` (state of 2026). A key that the loader does not know is ignored with a line in
its log.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from orthotune.formats.names.ldm import ldm_names
from orthotune.formats.names.modules import name_in_tools
from orthotune.formats.names.original import Original

#: family -> prefixes under which the loader knows the diffusers names; the first one is written. A name with the prefix
#: ``lycoris_`` or ``lora_transformer_`` has underscores. Other families are known by their original names only.
PREFIXES: dict[str, tuple[str, ...]] = {
    "flux": ("lycoris_", "transformer.", "lora_transformer_", ""),
    "chroma": ("lycoris_", "transformer.", "lora_transformer_", ""),
    "flux2": ("lycoris_", "transformer.", "lora_transformer_", ""),
    "sd3": ("lycoris_", "transformer.", "lora_transformer_", "base_model.model."),
    "auraflow": ("transformer.",),
    "pixart": ("transformer.", "base_model.model."),
    "qwen-image": ("lycoris_", "transformer.", ""),
    "z-image": ("lycoris_", "transformer.", "diffusion_model.", ""),
    "krea2": ("lycoris_", "transformer.", "diffusion_model.", ""),
    "hidream": ("lycoris_", "transformer."),
}
#: family -> starts of diffusers names that its map lacks; they are known by their original names
OUTSIDE: dict[str, tuple[str, ...]] = {
    "chroma": ("distilled_guidance_layer.",),
    "flux2": ("time_guidance_embed.", "double_stream_modulation_", "single_stream_modulation."),
}
#: family -> prefix of its original names, where other than ``lora_unet_``
ORIGINAL_PREFIXES = {"hunyuan-video": "transformer.", "hunyuan-video-15": "transformer."}
#: family -> name of T5 in ComfyUI's text encoders
_T5 = {"auraflow": "pile_t5xl", "wan": "umt5xxl"}
#: families whose second text encoder is CLIP-L, which the loader numbers as the first; its number 2 is CLIP-G
_CLIP_L_SECOND = frozenset({"hunyuan-video"})
_UNDERSCORED = ("lycoris_", "lora_transformer_", "lora_unet_")
_CLIP = re.compile(r"(?:text_model\.)?encoder\.layers\.\d+\..+|transformer\.resblocks\.\d+\..+|text_projection")
_T5_LAYER = re.compile(r"(?:encoder|shared)\..+|shared")
_LLM_LAYER = re.compile(r"(?:model\.)?(?:language_model\.)?(layers\.\d+\..+|embed_tokens)")


def denoiser_name(module: str, family: Original | None) -> tuple[str, tuple[str, ...]]:
    """The name of a layer of the denoiser for ComfyUI, and the diffusers layers that it means, in order of its rows.

    Args:
        module: name in diffusers.
        family: of the denoiser; None for a UNet, or if no table has the model.

    Example:
        >>> from orthotune.formats.names.original_tables import AURAFLOW, FLUX, LUMINA2
        >>> denoiser_name("transformer_blocks.0.attn.to_q", FLUX)
        ('lycoris_transformer_blocks_0_attn_to_q', ('transformer_blocks.0.attn.to_q',))
        >>> denoiser_name("single_transformer_blocks.0.attn.to_q", AURAFLOW)[0]
        'transformer.single_transformer_blocks.0.attn.to_q'
        >>> denoiser_name("layers.0.attn.to_q", LUMINA2)
        ('lora_unet_layers_0_attention_qkv', ('layers.0.attn.to_q', 'layers.0.attn.to_k', 'layers.0.attn.to_v'))
    """
    place = family.place(module) if family is not None else None
    if family is None or place is None:
        return _with_prefix("lora_unet_", module), (module,)
    if family.family in PREFIXES and not module.startswith(OUTSIDE.get(family.family, ("\0",))):
        return _with_prefix(PREFIXES[family.family][0], module), (module,)
    return _with_prefix(ORIGINAL_PREFIXES.get(family.family, "lora_unet_"), place.original), place.parts


def encoder_name(component: str, module: str, family: Original | None, encoders: Collection[str]) -> str:
    """The name of a layer of a text encoder for ComfyUI.

    Args:
        component: of the pipeline, such as ``text_encoder_2``.
        module: its name in transformers.
        family: of the denoiser, if it is known.
        encoders: all text encoders of the pipeline or of the adapter.

    Example:
        >>> from orthotune.formats.names.original_tables import HUNYUAN_VIDEO
        >>> both = ["text_encoder", "text_encoder_2"]
        >>> encoder_name("text_encoder_2", "encoder.layers.0.mlp.fc1", None, both)
        'lora_te2_text_model_encoder_layers_0_mlp_fc1'
        >>> encoder_name("text_encoder_2", "encoder.layers.0.mlp.fc1", HUNYUAN_VIDEO, both)
        'lora_te1_text_model_encoder_layers_0_mlp_fc1'
        >>> encoder_name("text_encoder_2", "encoder.block.0.layer.0.SelfAttention.q", None, ["text_encoder"])
        'text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q'
        >>> encoder_name("text_encoder", "layers.0.mlp.up_proj", None, ["text_encoder"])
        'lora_te_layers_0_mlp_up_proj'
    """
    number = component.removeprefix("text_encoder").removeprefix("_") or "1"
    if _CLIP.fullmatch(module):
        if family is not None and family.family in _CLIP_L_SECOND and number == "2":
            number = "1"
        prefix = "lora_te_" if number == "1" and "text_encoder_2" not in encoders else f"lora_te{number}_"
        named = name_in_tools(component, module).removeprefix(f"{component}.")
        return prefix.replace("te_", "te1_") + named if module == "text_projection" else _with_prefix(prefix, named)
    if found := _LLM_LAYER.fullmatch(module):
        if len(encoders) == 1:
            return _with_prefix("lora_te_", found[1])
        return f"text_encoders.llama.transformer.model.{found[1]}"
    if _T5_LAYER.fullmatch(module):
        wrapper = _T5.get(family.family, "t5xxl") if family is not None else "t5xxl"
        return f"text_encoders.{wrapper}.transformer.{module}"
    return _with_prefix(f"lora_te{number}_", module)


def is_known(component: str, module: str, family: Original | None, unet: Collection[str]) -> bool | None:
    """Whether ComfyUI's maps have a layer under the name that is written; None if no map for such a model is known.

    Args:
        component: of the pipeline; "" for a single denoiser.
        module: name in diffusers or transformers.
        family: of the denoiser.
        unet: the layers among which those of a UNet have names of original checkpoints.
    """
    if component.startswith("text_encoder"):
        patterns = (_CLIP, _LLM_LAYER, _T5_LAYER)
        return True if any(pattern.fullmatch(module) for pattern in patterns) else None
    if family is not None:
        return family.place(module) is not None
    found = ldm_names(unet)
    return module in found if found else None


def _with_prefix(prefix: str, name: str) -> str:
    return prefix + (name.replace(".", "_") if prefix in _UNDERSCORED or prefix.startswith("lora_te") else name)
