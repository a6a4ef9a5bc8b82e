"""Tiny transformers of every family whose layers have other names in the program that first released it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def makers() -> dict[str, Callable[[], Any]]:
    """Family -> a function that makes a model of one block of each kind, with random weights."""
    import diffusers as d

    return {
        "flux": lambda: d.FluxTransformer2DModel(
            in_channels=4, num_layers=2, num_single_layers=2, attention_head_dim=8, num_attention_heads=2,
            joint_attention_dim=8, pooled_projection_dim=8, axes_dims_rope=(2, 2, 4), guidance_embeds=True),
        "chroma": lambda: d.ChromaTransformer2DModel(
            in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
            joint_attention_dim=8, axes_dims_rope=(2, 2, 4), approximator_num_channels=8, approximator_hidden_dim=8,
            approximator_layers=1),
        "flux2": lambda: d.Flux2Transformer2DModel(
            in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
            joint_attention_dim=8, timestep_guidance_channels=8, axes_dims_rope=(2, 2, 2, 2)),
        "sd3": lambda: d.SD3Transformer2DModel(
            sample_size=8, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
            joint_attention_dim=8, caption_projection_dim=16, pooled_projection_dim=8, dual_attention_layers=(0,)),
        "auraflow": lambda: d.AuraFlowTransformer2DModel(
            sample_size=8, num_mmdit_layers=1, num_single_dit_layers=1, num_attention_heads=2, attention_head_dim=8,
            joint_attention_dim=8, caption_projection_dim=16),
        "wan": lambda: d.WanTransformer3DModel(
            num_layers=1, num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, ffn_dim=8,
            text_dim=8, freq_dim=8, image_dim=8, added_kv_proj_dim=24),
        "hunyuan-video": lambda: d.HunyuanVideoTransformer3DModel(
            in_channels=4, num_layers=1, num_single_layers=1, num_refiner_layers=1, num_attention_heads=2,
            attention_head_dim=8, text_embed_dim=8, pooled_projection_dim=8, rope_axes_dim=(2, 2, 4)),
        "hunyuan-video-15": lambda: d.HunyuanVideo15Transformer3DModel(
            in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=1,
            num_refiner_layers=1, text_embed_dim=8, text_embed_2_dim=4, image_embed_dim=8, rope_axes_dim=(2, 2, 4)),
        "lumina2": lambda: d.Lumina2Transformer2DModel(
            in_channels=4, num_layers=1, num_refiner_layers=1, hidden_size=24, num_attention_heads=2, num_kv_heads=1,
            cap_feat_dim=8, axes_dim_rope=(4, 4, 4)),
        "z-image": lambda: d.ZImageTransformer2DModel(
            in_channels=4, n_layers=1, n_refiner_layers=1, dim=24, n_heads=2, n_kv_heads=2, cap_feat_dim=8,
            axes_dims=[4, 4, 4], axes_lens=[8, 8, 8]),
        "pixart": lambda: d.PixArtTransformer2DModel(
            num_layers=1, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16, caption_channels=8,
            sample_size=8),
        "qwen-image": lambda: d.QwenImageTransformer2DModel(
            in_channels=4, num_layers=1, num_attention_heads=2, attention_head_dim=8, joint_attention_dim=8,
            axes_dims_rope=(2, 2, 4)),
        "ltx": lambda: d.LTXVideoTransformer3DModel(
            in_channels=4, num_layers=1, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
            caption_channels=8),
        "hidream": lambda: d.HiDreamImageTransformer2DModel(
            patch_size=2, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8,
            num_attention_heads=2, caption_channels=[8, 8], text_emb_dim=8, num_routed_experts=2,
            num_activated_experts=1, axes_dims_rope=(2, 2, 4), max_resolution=(8, 8), llama_layers=[0, 1]),
        "ideogram4": lambda: d.Ideogram4Transformer2DModel(
            in_channels=16, num_layers=1, attention_head_dim=12, num_attention_heads=2, intermediate_size=16,
            adaln_dim=8, llm_features_dim=16, mrope_section=(2, 2, 2)),
    }  # fmt: skip
