"""Tiny pipelines of the families of transformers with one text encoder: the real classes made from configs.

A latent of the VAE is 2 x 2 pixels, pictures are 32 x 64, words are read as bytes or as those of the image world.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tests.support.editing_pipelines import EDITING

#: widths of the text encoders
WORDS = 8
#: fields of the config of Qwen2.5-VL -> tokens that stand for images
SEEN = {"image_token": "image_pad", "video_token": "video_pad", "vision_start_token": "vision_start",
        "vision_end_token": "vision_end"}  # fmt: skip


def tiny_transformer_pipeline(kind: str) -> Any:
    """A pipeline of ``kind`` with random numbers, the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return (MAKERS | EDITING)[kind]()


def flow(**fields: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**{"shift": 3.0} | fields)


def _bytes_tokenizer() -> Any:
    """A tokenizer of single bytes with the chat template of Qwen."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|{word}|>" for word in SEEN.values())]
    vocab = {letter: number for number, letter in enumerate([*sorted(ByteLevel.alphabet()), *special])}
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=[], model_max_length=2048)
    tokenizer.add_special_tokens({"additional_special_tokens": special[1:]})
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}<|im_start|>assistant"
    )
    return tokenizer


def _qwen3(layers: int, causal: bool) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3Model

    config = Qwen3Config(
        vocab_size=len(_bytes_tokenizer()), hidden_size=WORDS, intermediate_size=8, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=1, head_dim=4, max_position_embeddings=2048,
        tie_word_embeddings=False,
    )  # fmt: skip
    return (Qwen3ForCausalLM if causal else Qwen3Model)(config)


def _flux2_klein(**fields: Any) -> Any:
    from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline, Flux2Transformer2DModel

    vae = AutoencoderKLFlux2(
        block_out_channels=(4, 8), norm_num_groups=2, layers_per_block=1, latent_channels=4, sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    vae.bn.running_mean.normal_(std=0.1)
    vae.bn.running_var.uniform_(0.5, 2.0)
    transformer = Flux2Transformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=3 * WORDS, timestep_guidance_channels=8, axes_dims_rope=(2, 2, 2, 2),
        guidance_embeds=False,
    )  # fmt: skip
    return Flux2KleinPipeline(
        scheduler=flow(use_dynamic_shifting=True), vae=vae, text_encoder=_qwen3(28, causal=True),
        tokenizer=_bytes_tokenizer(), transformer=transformer,
    )  # fmt: skip


def _z_image() -> Any:
    from diffusers import ZImagePipeline, ZImageTransformer2DModel

    from tests.support.tiny_pipelines import _vae

    transformer = ZImageTransformer2DModel(
        in_channels=4, n_layers=1, n_refiner_layers=1, dim=24, n_heads=2, n_kv_heads=2, cap_feat_dim=WORDS,
        axes_dims=[4, 4, 4], axes_lens=[512, 32, 32],
    )  # fmt: skip
    # dim // heads = 12; the padding tokens are not initialized
    for name in ("x_pad_token", "cap_pad_token"):
        getattr(transformer, name).data.normal_(std=0.02)
    return ZImagePipeline(
        scheduler=flow(), vae=_vae(scaling_factor=0.3611, shift_factor=0.1159), text_encoder=_qwen3(3, causal=False),
        tokenizer=_bytes_tokenizer(), transformer=transformer,
    )  # fmt: skip


def _qwen_image() -> Any:
    from diffusers import QwenImagePipeline

    return QwenImagePipeline(**qwen_image_parts())


def qwen_image_parts() -> dict[str, Any]:
    """The components that Qwen-Image and Qwen-Image-Edit share."""
    from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text = {
        "vocab_size": len(_bytes_tokenizer()), "hidden_size": WORDS, "intermediate_size": 8, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 0, 1]},
    }  # fmt: skip
    vision = {"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 2, "out_hidden_size": WORDS,
              "fullatt_block_indexes": [0]}  # fmt: skip
    tokenizer = _bytes_tokenizer()
    ids = {f"{name}_id": tokenizer.convert_tokens_to_ids(f"<|{word}|>") for name, word in SEEN.items()}
    encoder = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids))
    return dict(
        scheduler=flow(use_dynamic_shifting=True),
        vae=AutoencoderKLQwenImage(
            base_dim=4, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, attn_scales=[], temperal_downsample=[False],
            latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.5, 0.7, 2.0, 1.0],
        ),
        text_encoder=encoder, tokenizer=tokenizer,
        transformer=QwenImageTransformer2DModel(
            patch_size=2, in_channels=16, out_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=2,
            joint_attention_dim=WORDS, axes_dims_rope=(2, 2, 4),
        ),
    )  # fmt: skip


def _chroma() -> Any:
    from diffusers import ChromaPipeline, ChromaTransformer2DModel

    from tests.support.tiny_pipelines import JOINT, _t5, _t5_tokenizer, _vae

    transformer = ChromaTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=JOINT, axes_dims_rope=(2, 2, 4), approximator_num_channels=8, approximator_hidden_dim=8,
        approximator_layers=1,
    )  # fmt: skip
    return ChromaPipeline(
        scheduler=flow(shift=1.0), vae=_vae(scaling_factor=0.3611, shift_factor=0.1159), text_encoder=_t5(),
        tokenizer=_t5_tokenizer(), transformer=transformer,
    )  # fmt: skip


def _wan(experts: int = 1) -> Any:
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

    from tests.support.tiny_pipelines import _t5_tokenizer

    def expert() -> Any:
        return WanTransformer3DModel(
            patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
            text_dim=WORDS, freq_dim=16, ffn_dim=16, num_layers=1, cross_attn_norm=True,
            qk_norm="rms_norm_across_heads", rope_max_seq_len=32,
        )  # fmt: skip

    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=3.0
    )
    return WanPipeline(
        tokenizer=_t5_tokenizer(),
        text_encoder=UMT5EncoderModel(UMT5Config(
            vocab_size=len(_t5_tokenizer()), d_model=WORDS, d_kv=4, d_ff=16, num_layers=1, num_heads=2,
            is_encoder_decoder=False, use_cache=False,
        )),
        vae=AutoencoderKLWan(
            base_dim=4, z_dim=4, dim_mult=[1, 2, 2], num_res_blocks=1, attn_scales=[],
            temperal_downsample=[True, True], latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.5, 0.7, 2.0, 1.0],
            scale_factor_spatial=4, scale_factor_temporal=4,
        ),
        scheduler=scheduler, transformer=expert(), transformer_2=expert() if experts == 2 else None,
        boundary_ratio=0.875 if experts == 2 else None,
    )  # fmt: skip


def _lumina2() -> Any:
    from diffusers import Lumina2Pipeline, Lumina2Transformer2DModel
    from transformers import Gemma2Config, Gemma2Model

    from tests.support.tiny_pipelines import _vae

    pipeline = Lumina2Pipeline(
        transformer=Lumina2Transformer2DModel(
            sample_size=8, in_channels=4, num_layers=1, num_refiner_layers=1, hidden_size=24, num_attention_heads=2,
            num_kv_heads=1, cap_feat_dim=WORDS, axes_dim_rope=(4, 4, 4), axes_lens=(300, 32, 32), multiple_of=8,
        ),
        scheduler=flow(shift=6.0), vae=_vae(scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=Gemma2Model(Gemma2Config(
            vocab_size=len(_bytes_tokenizer()), hidden_size=WORDS, intermediate_size=8, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, head_dim=4, bos_token_id=0, eos_token_id=1, pad_token_id=0,
        )),
        tokenizer=_bytes_tokenizer(),
    )  # fmt: skip
    pipeline.vae_scale_factor = 2  # 8 is fixed in the class
    pipeline.system_prompt = "You see."  # the published one has 180 bytes, which would be all that is read
    return pipeline


def _auraflow() -> Any:
    from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel
    from transformers import UMT5Config, UMT5EncoderModel

    from tests.support.tiny_pipelines import _t5_tokenizer, _vae

    return AuraFlowPipeline(
        tokenizer=_t5_tokenizer(),
        text_encoder=UMT5EncoderModel(UMT5Config(
            vocab_size=len(_t5_tokenizer()), d_model=WORDS, d_kv=4, d_ff=16, num_layers=1, num_heads=2,
            is_encoder_decoder=False, use_cache=False,
        )),
        vae=_vae(scaling_factor=0.13025), scheduler=flow(shift=1.73),
        transformer=AuraFlowTransformer2DModel(
            sample_size=16, in_channels=4, out_channels=4, num_mmdit_layers=1, num_single_dit_layers=1,
            attention_head_dim=8, num_attention_heads=2, joint_attention_dim=WORDS, caption_projection_dim=16,
            pos_embed_max_size=256,
        ),
    )  # fmt: skip


def _sana() -> Any:
    from diffusers import AutoencoderDC, SanaPipeline, SanaTransformer2DModel
    from transformers import Gemma2Config, Gemma2Model

    vae = AutoencoderDC(
        latent_channels=4, attention_head_dim=2, encoder_block_types=("ResBlock", "ResBlock"),
        decoder_block_types=("ResBlock", "ResBlock"), encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8), encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()), decoder_qkv_multiscales=((), ()), downsample_block_type="conv",
        upsample_block_type="interpolate", scaling_factor=0.41407,
    )  # fmt: skip
    return SanaPipeline(
        tokenizer=_bytes_tokenizer(),
        text_encoder=Gemma2Model(Gemma2Config(
            vocab_size=len(_bytes_tokenizer()), hidden_size=WORDS, intermediate_size=8, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=1, head_dim=4, bos_token_id=0, eos_token_id=1, pad_token_id=0,
            max_position_embeddings=8192,
        )),
        vae=vae, scheduler=flow(),
        transformer=SanaTransformer2DModel(
            in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2, attention_head_dim=8,
            num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=WORDS,
            sample_size=8, patch_size=1,
        ),
    )  # fmt: skip


def _hunyuan_video() -> Any:
    from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoPipeline, HunyuanVideoTransformer3DModel
    from transformers import CLIPTextConfig, CLIPTextModel, LlamaConfig, LlamaModel

    from tests.support.tiny_pipelines import FIRST, _clip, _clip_tokenizer

    llama = LlamaModel(LlamaConfig(
        vocab_size=len(_bytes_tokenizer()), hidden_size=WORDS, intermediate_size=8, num_hidden_layers=3,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=2048, bos_token_id=0, eos_token_id=1,
    ))  # fmt: skip
    clip = CLIPTextModel(CLIPTextConfig(**_clip(FIRST).config.to_dict() | {"max_position_embeddings": 77}))
    vae = AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8,) * 3, layers_per_block=1, norm_num_groups=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 3, up_block_types=("HunyuanVideoUpBlock3D",) * 3,
        spatial_compression_ratio=4, temporal_compression_ratio=4, scaling_factor=0.476986,
    )  # fmt: skip
    return HunyuanVideoPipeline(
        text_encoder=llama, tokenizer=_bytes_tokenizer(), vae=vae, scheduler=flow(shift=7.0),
        text_encoder_2=clip, tokenizer_2=_clip_tokenizer(),
        transformer=HunyuanVideoTransformer3DModel(
            in_channels=4, out_channels=4, num_layers=1, num_single_layers=1, num_refiner_layers=1,
            num_attention_heads=2, attention_head_dim=8, text_embed_dim=WORDS, pooled_projection_dim=FIRST[0],
            rope_axes_dim=(2, 2, 4), patch_size=2, patch_size_t=1,
        ),
    )  # fmt: skip


def _krea2() -> Any:
    from diffusers import Krea2Pipeline, Krea2Transformer2DModel
    from transformers import Qwen3VLConfig, Qwen3VLModel

    parts = qwen_image_parts()
    text = {
        "vocab_size": len(_bytes_tokenizer()), "hidden_size": WORDS, "intermediate_size": 8, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 0]},
    }  # fmt: skip
    vision = {"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 2, "out_hidden_size": WORDS,
              "deepstack_visual_indexes": [0]}  # fmt: skip
    return Krea2Pipeline(
        scheduler=parts["scheduler"], vae=parts["vae"], tokenizer=parts["tokenizer"],
        text_encoder=Qwen3VLModel(Qwen3VLConfig(text_config=text, vision_config=vision)),
        transformer=Krea2Transformer2DModel(
            in_channels=16, num_layers=1, attention_head_dim=8, num_attention_heads=2, num_key_value_heads=1,
            intermediate_size=16, timestep_embed_dim=8, text_hidden_dim=WORDS, num_text_layers=2,
            text_num_attention_heads=2, text_num_key_value_heads=2, text_intermediate_size=8,
            num_layerwise_text_blocks=1, num_refiner_text_blocks=1, axes_dims_rope=(2, 2, 4),
        ),
        text_encoder_select_layers=(1, 2),
    )  # fmt: skip


def _ltx_video() -> Any:
    from diffusers import AutoencoderKLLTXVideo, LTXPipeline, LTXVideoTransformer3DModel

    from tests.support.tiny_pipelines import JOINT, _t5, _t5_tokenizer

    scaling = (True, True, False, False)
    vae = AutoencoderKLLTXVideo(
        latent_channels=8, block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4, layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5, spatio_temporal_scaling=scaling, decoder_spatio_temporal_scaling=scaling,
        patch_size=1, scaling_factor=0.9,
    )  # fmt: skip
    vae.latents_mean.normal_(std=0.1)
    vae.latents_std.uniform_(0.5, 2.0)
    return LTXPipeline(
        scheduler=flow(use_dynamic_shifting=True), vae=vae, text_encoder=_t5(), tokenizer=_t5_tokenizer(),
        transformer=LTXVideoTransformer3DModel(
            in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
            num_layers=1, caption_channels=JOINT,
        ),
    )  # fmt: skip


def _ltx2() -> Any:
    from diffusers import (
        AutoencoderKLLTX2Audio,
        AutoencoderKLLTX2Video,
        LTX2Pipeline,
        LTX2VideoTransformer3DModel,
    )
    from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    text = {
        "vocab_size": len(_bytes_tokenizer()), "hidden_size": WORDS, "intermediate_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "max_position_embeddings": 2048,
        "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0,
    }  # fmt: skip
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 8, "patch_size": 4}  # fmt: skip
    vae = AutoencoderKLLTX2Video(
        latent_channels=8, block_out_channels=(8,) * 4, decoder_block_out_channels=(8, 16, 32),
        layers_per_block=(1,) * 5, decoder_layers_per_block=(1,) * 4, spatio_temporal_scaling=(True, True, True, False),
        patch_size=1, scaling_factor=0.9, downsample_type=("spatiotemporal",) * 4,
    )  # fmt: skip
    vae.latents_mean.normal_(std=0.1)
    vae.latents_std.uniform_(0.5, 2.0)
    return LTX2Pipeline(
        scheduler=flow(use_dynamic_shifting=True), vae=vae, tokenizer=_bytes_tokenizer(),
        text_encoder=Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision)),
        audio_vae=AutoencoderKLLTX2Audio(
            base_channels=8, output_channels=2, ch_mult=(1,), num_res_blocks=1, in_channels=2, resolution=16,
            latent_channels=2, mel_bins=16,
        ),
        vocoder=LTX2Vocoder(
            in_channels=32, hidden_channels=8, upsample_kernel_sizes=[4], upsample_factors=[2],
            resnet_kernel_sizes=[3], resnet_dilations=[[1]],
        ),
        connectors=LTX2TextConnectors(
            caption_channels=WORDS, text_proj_in_factor=2, video_connector_num_attention_heads=2,
            video_connector_attention_head_dim=4, video_connector_num_layers=1,
            video_connector_num_learnable_registers=8, audio_connector_num_attention_heads=2,
            audio_connector_attention_head_dim=4, audio_connector_num_layers=1,
            audio_connector_num_learnable_registers=8,
        ),
        transformer=LTX2VideoTransformer3DModel(
            in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
            audio_in_channels=8, audio_out_channels=8, audio_num_attention_heads=2, audio_attention_head_dim=4,
            audio_cross_attention_dim=8, num_layers=1, caption_channels=WORDS, vae_scale_factors=(8, 8, 8),
        ),
    )  # fmt: skip


def _hidream() -> Any:
    from diffusers import HiDreamImagePipeline, HiDreamImageTransformer2DModel
    from transformers import CLIPTextModelWithProjection, LlamaConfig, LlamaForCausalLM

    from tests.support.tiny_pipelines import FIRST, JOINT, SECOND, _clip, _clip_tokenizer, _t5, _t5_tokenizer, _vae

    def clip(size: tuple[int, int]) -> Any:
        fields = _clip(size).config.to_dict() | {"max_position_embeddings": 218, "projection_dim": size[1]}
        return CLIPTextModelWithProjection(CLIPTextModelWithProjection.config_class(**fields))

    llama = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(_bytes_tokenizer()), hidden_size=WORDS, intermediate_size=8, num_hidden_layers=3,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=2048, bos_token_id=0, eos_token_id=1,
        attn_implementation="eager",
    ))  # fmt: skip
    return HiDreamImagePipeline(
        scheduler=flow(), vae=_vae(scaling_factor=0.3611, shift_factor=0.1159), text_encoder=clip(FIRST),
        tokenizer=_clip_tokenizer(), text_encoder_2=clip(SECOND), tokenizer_2=_clip_tokenizer(), text_encoder_3=_t5(),
        tokenizer_3=_t5_tokenizer(), text_encoder_4=llama, tokenizer_4=_bytes_tokenizer(),
        transformer=HiDreamImageTransformer2DModel(
            patch_size=2, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8,
            num_attention_heads=2, caption_channels=[JOINT, WORDS], text_emb_dim=FIRST[1] + SECOND[1],
            num_routed_experts=3, num_activated_experts=2, axes_dims_rope=(2, 2, 4), max_resolution=(32, 32),
            llama_layers=[0, 2],
        ),
    )  # fmt: skip


def _hunyuan_video15() -> Any:
    from diffusers import (
        AutoencoderKLHunyuanVideo15,
        ClassifierFreeGuidance,
        HunyuanVideo15Pipeline,
        HunyuanVideo15Transformer3DModel,
    )
    from transformers import ByT5Tokenizer, Qwen2_5_VLTextConfig, Qwen2_5_VLTextModel, T5Config, T5EncoderModel

    qwen = Qwen2_5_VLTextModel(Qwen2_5_VLTextConfig(
        vocab_size=len(_bytes_tokenizer()), hidden_size=WORDS, intermediate_size=8, num_hidden_layers=3,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 0, 1]},
    ))  # fmt: skip
    glyphs = ByT5Tokenizer()
    pipeline = HunyuanVideo15Pipeline(
        text_encoder=qwen, tokenizer=_bytes_tokenizer(), scheduler=flow(shift=5.0), tokenizer_2=glyphs,
        text_encoder_2=T5EncoderModel(T5Config(
            vocab_size=len(glyphs), d_model=4, d_kv=2, d_ff=8, num_layers=1, num_heads=2, is_encoder_decoder=False,
            use_cache=False,
        )),
        vae=AutoencoderKLHunyuanVideo15(
            latent_channels=4, block_out_channels=(8, 8), layers_per_block=1, spatial_compression_ratio=2,
            temporal_compression_ratio=2, scaling_factor=1.03682,
        ),
        transformer=HunyuanVideo15Transformer3DModel(
            in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=2,
            num_refiner_layers=1, text_embed_dim=WORDS, text_embed_2_dim=4, image_embed_dim=8,
            rope_axes_dim=(2, 2, 4), target_size=32, task_type="t2v",
        ),
        guider=ClassifierFreeGuidance(guidance_scale=6.0),
    )  # fmt: skip
    # Every film is attended to with all the words there could be: of 2,000 of them a step takes seconds.
    pipeline.tokenizer_max_length, pipeline.tokenizer_2_max_length, pipeline.vision_num_semantic_tokens = 64, 32, 9
    return pipeline


def _ideogram4() -> Any:
    from diffusers import AutoencoderKLFlux2, Ideogram4Pipeline, Ideogram4Transformer2DModel
    from transformers import Qwen3VLConfig, Qwen3VLModel

    text = {
        "vocab_size": len(_bytes_tokenizer()), "hidden_size": WORDS, "intermediate_size": 8, "num_hidden_layers": 36,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 0]},
    }  # fmt: skip
    vision = {"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 2, "out_hidden_size": WORDS,
              "deepstack_visual_indexes": [0]}  # fmt: skip
    vae = AutoencoderKLFlux2(
        block_out_channels=(4, 8), norm_num_groups=2, layers_per_block=1, latent_channels=4, sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    vae.bn.running_mean.normal_(std=0.1)
    vae.bn.running_var.uniform_(0.5, 2.0)

    def transformer() -> Any:
        return Ideogram4Transformer2DModel(
            in_channels=16, num_layers=1, attention_head_dim=12, num_attention_heads=2, intermediate_size=16,
            adaln_dim=8, llm_features_dim=13 * WORDS, rope_theta=10000, mrope_section=(2, 2, 2),
        )  # fmt: skip

    return Ideogram4Pipeline(
        scheduler=flow(shift=1.0), vae=vae, tokenizer=_bytes_tokenizer(), transformer=transformer(),
        text_encoder=Qwen3VLModel(Qwen3VLConfig(text_config=text, vision_config=vision)),
        unconditional_transformer=transformer(),
    )  # fmt: skip


MAKERS: dict[str, Callable[[], Any]] = {
    "flux2-klein": _flux2_klein,
    "z-image": _z_image,
    "qwen-image": _qwen_image,
    "chroma": _chroma,
    "wan": _wan,
    "hunyuan-video": _hunyuan_video,
    "lumina2": _lumina2,
    "auraflow": _auraflow,
    "sana": _sana,
    "krea2": _krea2,
    "ltx-video": _ltx_video,
    "ltx-2": _ltx2,
    "hidream": _hidream,
    "hunyuan-video-15": _hunyuan_video15,
    "ideogram4": _ideogram4,
    "wan-2.2": lambda: _wan(experts=2),
}
