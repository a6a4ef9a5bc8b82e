"""What stands before the names of modules in files, in groups that several tools share.

Sources: the tools in ``docs/reference/formats.md``. Each format names its groups, and the registry collects them.
"""

from __future__ import annotations

#: (prefix, components of a pipeline that the prefix means, whether the rest of the name has underscores for dots)
Prefix = tuple[str, tuple[str, ...], bool]

_DENOISER = ("unet", "transformer")
#: which encoder of a pipeline these are hangs on the model; their modules' names tell them from CLIP's
_T5, _LLAMA = ("text_encoder", "text_encoder_2", "text_encoder_3"), ("text_encoder", "text_encoder_4")
_ANY: tuple[str, ...] = ()

#: names of modules as they are, dotted or underscored, in the files of any tool
BARE: tuple[Prefix, ...] = (("", _ANY, False), ("", _ANY, True))
PEFT: tuple[Prefix, ...] = (("base_model.model.", _ANY, False),)
#: sd-scripts (kohya-ss), and every tool that writes what sd-scripts reads
LORA: tuple[Prefix, ...] = (
    ("lora_unet_", _DENOISER, True),
    ("lora_te_", ("text_encoder",), True),
    ("lora_te1_", ("text_encoder",), True),
    ("lora_te2_", ("text_encoder_2",), True),
    ("lora_te3_", ("text_encoder_3", "text_encoder_2"), True),  # sd-scripts, for the T5 of Flux as of SD3
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
#: components of a pipeline of diffusers
DIFFUSERS: tuple[Prefix, ...] = (
    ("unet.", _DENOISER, False),
    ("transformer.", _DENOISER, False),
    ("controlnet.", ("controlnet",), False),
    ("text_encoder.", ("text_encoder",), False),
    ("text_encoder_2.", ("text_encoder_2",), False),
    ("text_encoder_3.", ("text_encoder_3",), False),
    ("text_encoder_4.", ("text_encoder_4",), False),
)
#: components of a checkpoint in one file, as the original (LDM) programs and ComfyUI name them
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
