"""Every family's pipeline, tiny: the real classes made from configs, with real tokenizers, saved as a folder.

A latent is 2 x 2 pixels, pictures are 16 x 16 where the family has a native size of its own, words are those of the
image world. All sizes that may differ do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

WORDS = ["a", "an", "the", "of", "photo", "sks", "digit", "red", "green", "blue", "on", "in", "background", "three"]
#: hidden sizes of the CLIP encoders and what they are projected to
FIRST, SECOND = (12, 6), (8, 4)
JOINT = FIRST[0] + SECOND[0]

KINDS = ("sd15", "sd21", "sdxl", "sd3", "sd3-without-t5", "flux-dev", "flux-schnell")
#: one of each family
FAMILIES = ("sd15", "sdxl", "sd3", "flux-dev")
#: starts of the names above -> what is known of such a pipeline: its family
NAMES = {"sd": "stable-diffusion", "sdxl": "sdxl", "sd3": "sd3", "flux": "flux"}
#: its latents are ``(z - shift) * scale``, other than Stable Diffusion's
LATENTS = {"sd3": (0.0609, 1.5305), "flux": (0.1159, 0.3611)}
#: and linear layers of its attention on which no image depends: SD3's last block throws away what becomes of the words
IDLE = {"sd3": {"transformer_blocks.1.attn.add_q_proj"}}


def known_of(kind: str, facts: dict[str, Any], otherwise: Any = None) -> Any:
    """What ``facts`` say of ``kind``, by the longest start of its name."""
    found = [start for start in facts if kind.startswith(start)]
    return facts[max(found, key=len)] if found else otherwise


def save_tiny(kind: str, folder: Path, **scheduler: Any) -> Path:
    """The folder of a pipeline of ``kind``; ``scheduler`` are fields of its scheduler's config to change."""
    pipeline = tiny_pipeline(kind, **scheduler)
    pipeline.save_pretrained(folder)
    return folder


def tiny_pipeline(kind: str, **scheduler: Any) -> Any:
    """A pipeline of ``kind`` with random numbers, the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return _MAKERS[kind](scheduler)


def _sd15(scheduler: dict[str, Any]) -> Any:
    from diffusers import PNDMScheduler, StableDiffusionPipeline

    # the scheduler of the published folder
    noise = PNDMScheduler(**_BETAS, skip_prk_steps=True, steps_offset=1, **scheduler)
    return _sd(StableDiffusionPipeline, noise, _unet(FIRST[0]))


def _sd21(scheduler: dict[str, Any]) -> Any:
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    fields = {"prediction_type": "v_prediction", "set_alpha_to_one": False, "steps_offset": 1} | scheduler
    unet = _unet(FIRST[0], attention_head_dim=(2, 4), use_linear_projection=True)
    return _sd(StableDiffusionPipeline, DDIMScheduler(**_BETAS, clip_sample=False, **fields), unet)


def _sd(kind: Any, scheduler: Any, unet: Any) -> Any:
    return kind(
        vae=_vae(), text_encoder=_clip(FIRST), tokenizer=_clip_tokenizer(), unet=unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def _sdxl(scheduler: dict[str, Any]) -> Any:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    unet = _unet(
        JOINT, attention_head_dim=(2, 4), use_linear_projection=True, transformer_layers_per_block=(1, 2),
        addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + SECOND[1],
    )  # fmt: skip
    return StableDiffusionXLPipeline(
        vae=_vae(), text_encoder=_clip(FIRST), text_encoder_2=_clip(SECOND, projected=True),
        tokenizer=_clip_tokenizer(), tokenizer_2=_clip_tokenizer(), unet=unet,
        scheduler=EulerDiscreteScheduler(**_BETAS, timestep_spacing="leading", steps_offset=1, **scheduler),
    )  # fmt: skip


def _sd3(scheduler: dict[str, Any], t5: bool = True) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=JOINT, caption_projection_dim=16,
        pooled_projection_dim=FIRST[1] + SECOND[1], pos_embed_max_size=16, dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )  # fmt: skip
    return StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 3.0} | scheduler),
        vae=_vae(scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=_clip(FIRST, projected=True), tokenizer=_clip_tokenizer(),
        text_encoder_2=_clip(SECOND, projected=True), tokenizer_2=_clip_tokenizer(),
        text_encoder_3=_t5() if t5 else None, tokenizer_3=_t5_tokenizer() if t5 else None,
    )  # fmt: skip


def _flux(scheduler: dict[str, Any], guided: bool) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=JOINT, pooled_projection_dim=FIRST[0], guidance_embeds=guided, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    shift = {"shift": 3.0, "use_dynamic_shifting": True} if guided else {"shift": 1.0}
    return FluxPipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(**shift | scheduler),
        vae=_vae(scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=_clip(FIRST), tokenizer=_clip_tokenizer(), text_encoder_2=_t5(), tokenizer_2=_t5_tokenizer(),
    )  # fmt: skip


_MAKERS: dict[str, Any] = {
    "sd15": _sd15,
    "sd21": _sd21,
    "sdxl": _sdxl,
    "sd3": _sd3,
    "sd3-without-t5": lambda scheduler: _sd3(scheduler, t5=False),
    "flux-dev": lambda scheduler: _flux(scheduler, guided=True),
    "flux-schnell": lambda scheduler: _flux(scheduler, guided=False),
}
_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def _unet(words: int, **fields: Any) -> Any:
    from diffusers import UNet2DConditionModel

    fields = {"attention_head_dim": 2, "in_channels": 4} | fields
    return UNet2DConditionModel(
        sample_size=8, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
        norm_num_groups=4, cross_attention_dim=words, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), **fields,
    )  # fmt: skip


def _vae(**fields: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(4, 8), norm_num_groups=2, layers_per_block=1, latent_channels=4, sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, **fields,
    )  # fmt: skip


def _clip_tokenizer() -> Any:
    from image_tokenizer import new_tokenizer

    return new_tokenizer(WORDS)


def _clip(size: tuple[int, int], projected: bool = False) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = _clip_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=size[0], intermediate_size=2 * size[0], num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=tokenizer.model_max_length, projection_dim=size[1],
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def _t5_tokenizer() -> Any:
    from transformers import T5Tokenizer

    letters = sorted(set("".join(WORDS)))
    known = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0)]
    known += [(letter, -4.0) for letter in letters] + [(f"▁{word}", -1.0) for word in WORDS]
    return T5Tokenizer(vocab=known, extra_ids=0, model_max_length=512)


def _t5() -> Any:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(
            vocab_size=len(_t5_tokenizer()), d_model=JOINT, d_kv=4, d_ff=24, num_layers=1, num_heads=2,
            feed_forward_proj="gated-gelu", is_encoder_decoder=False, use_cache=False,
        )
    )  # fmt: skip
