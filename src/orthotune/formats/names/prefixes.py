"""Prefixes of module names in files, in groups that several tools share.

Sources: the tools in ``docs/reference/formats.md``. Each format lists its groups; the registry collects all prefixes.
"""

from __future__ import annotations

#: (prefix, components of a pipeline that the prefix can mean, whether the rest of the name has underscores for dots)
Prefix = tuple[str, tuple[str, ...], bool]

_DENOISER = ("unet", "transformer")
#: the position of these encoders depends on the pipeline; their module names distinguish them from CLIP
_T5, _LLAMA = ("text_encoder", "text_encoder_2", "text_encoder_3"), ("text_encoder", "text_encoder_4")
_ANY: tuple[str, ...] = ()

#: module names without a prefix, dotted or underscored, in files of any tool
BARE: tuple[Prefix, ...] = (("", _ANY, False), ("", _ANY, True))
PEFT: tuple[Prefix, ...] = (("base_model.model.", _ANY, False),)
#: sd-scripts (kohya-ss), and all tools that write files for sd-scripts
LORA: tuple[Prefix, ...] = (
    ("lora_unet_", _DENOISER, True),
    ("lora_te_", ("text_encoder",), True),
    ("lora_te1_", ("text_encoder",), True),
    ("lora_te2_", ("text_encoder_2",), True),
    ("lora_te3_", ("text_encoder_3", "text_encoder_2"), True),  # sd-scripts, for T5 of both Flux and SD3
)
KOHYA_OFT: tuple[Prefix, ...] = (("oft_unet_", _DENOISER, True),)
LYCORIS: tuple[Prefix, ...] = (("lycoris_", _ANY, True),)
ONETRAINER: tuple[Prefix, ...] = (
    ("lora_transformer_", _DENOISER, True),
    ("lora_prior_unet_", (*_DENOISER, "prior"), True),
    ("lora_prior_te_", ("text_encoder",), True),
    ("lora_te4_", ("text_encoder_4",), True),
    ("clip_l.", ("text_encoder",), False),
    ("clip_g.", ("text_encoder_2",), False),
    ("t5.", _T5, False),
    ("llama.", _LLAMA, False),
)
#: components of a diffusers pipeline
DIFFUSERS: tuple[Prefix, ...] = (
    ("unet.", _DENOISER, False),
    ("transformer.", _DENOISER, False),
    ("transformer_2.", ("transformer_2",), False),  # the second expert of Wan 2.2, for the times of little noise
    ("controlnet.", ("controlnet",), False),
    ("text_encoder.", ("text_encoder",), False),
    ("text_encoder_2.", ("text_encoder_2",), False),
    ("text_encoder_3.", ("text_encoder_3",), False),
    ("text_encoder_4.", ("text_encoder_4",), False),
)
#: components of a single-file checkpoint, as named by the original (LDM) programs and ComfyUI
CHECKPOINT: tuple[Prefix, ...] = (
    ("diffusion_model.", _DENOISER, False),
    ("model.diffusion_model.", _DENOISER, False),
    ("control_model.", ("controlnet",), False),
    ("cond_stage_model.transformer.", ("text_encoder",), False),
    ("conditioner.embedders.0.transformer.", ("text_encoder",), False),
    ("conditioner.embedders.1.model.", ("text_encoder_2",), False),
    ("text_encoders.clip_l.transformer.", ("text_encoder",), False),
    ("text_encoders.clip_g.transformer.", ("text_encoder_2",), False),
    ("text_encoders.t5xxl.transformer.", _T5, False),
    ("text_encoders.llama.transformer.", _LLAMA, False),
)
