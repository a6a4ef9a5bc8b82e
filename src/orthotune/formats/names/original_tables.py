"""The layer names of transformers in the programs that first released them, and in diffusers, family by family.

A table has one line for each original layer: its name, and the diffusers layers that hold its rows, from the first row
on. ``{}`` is the number of a block. Sources: the functions ``convert_*_to_diffusers`` of diffusers
(``loaders/single_file_utils.py``), against which the tests hold each line, and the maps ``*_to_diffusers`` of ComfyUI
(``comfy/utils.py``).
"""

from __future__ import annotations

from orthotune.formats.names.original import Original, blocks

_QKV, _ADDED = "attn.to_q attn.to_k attn.to_v", "attn.add_q_proj attn.add_k_proj attn.add_v_proj"
_STREAMS = {
    "img_attn.qkv": _QKV,
    "img_attn.proj": "attn.to_out.0",
    "txt_attn.qkv": _ADDED,
    "txt_attn.proj": "attn.to_add_out",
}
_MLPS = {
    "img_mlp.0": "ff.net.0.proj",
    "img_mlp.2": "ff.net.2",
    "txt_mlp.0": "ff_context.net.0.proj",
    "txt_mlp.2": "ff_context.net.2",
}
_FLUX_DOUBLE = ("double_blocks.{}", "transformer_blocks.{}")
_FLUX_SINGLE = ("single_blocks.{}", "single_transformer_blocks.{}")
_SINGLE = {"linear1": f"{_QKV} proj_mlp", "linear2": "proj_out"}
_FLUX_ENDS = {"img_in": "x_embedder", "txt_in": "context_embedder", "final_layer.linear": "proj_out"}
_EMBEDDERS = {
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
}
#: The halves of these layers, shift and scale, have changed places in diffusers.
_FINAL = {"final_layer.adaLN_modulation.1": "norm_out.linear"}

FLUX = Original(
    "flux",
    ("single_transformer_blocks.0.proj_mlp", "time_text_embed.timestep_embedder.linear_1", "x_embedder"),
    blocks(*_FLUX_DOUBLE, _STREAMS | _MLPS | {"img_mod.lin": "norm1.linear", "txt_mod.lin": "norm1_context.linear"})
    | blocks(*_FLUX_SINGLE, _SINGLE | {"modulation.lin": "norm.linear"})
    | blocks("", "", _FLUX_ENDS | _EMBEDDERS | _FINAL),
    swapped=("norm_out.linear",),
)
CHROMA = Original(
    "chroma",
    ("distilled_guidance_layer.in_proj", "single_transformer_blocks.0.proj_mlp"),
    blocks(*_FLUX_DOUBLE, _STREAMS | _MLPS)
    | blocks(*_FLUX_SINGLE, _SINGLE)
    | blocks("distilled_guidance_layer.layers.{}", "distilled_guidance_layer.layers.{}",
             {"in_layer": "linear_1", "out_layer": "linear_2"})
    | blocks("distilled_guidance_layer", "distilled_guidance_layer", {"in_proj": "in_proj", "out_proj": "out_proj"})
    | blocks("", "", _FLUX_ENDS),
)  # fmt: skip
FLUX2 = Original(
    "flux2",
    ("single_transformer_blocks.0.attn.to_qkv_mlp_proj",),
    blocks(*_FLUX_DOUBLE, _STREAMS | {
        "img_mlp.0": "ff.linear_in", "img_mlp.2": "ff.linear_out",
        "txt_mlp.0": "ff_context.linear_in", "txt_mlp.2": "ff_context.linear_out",
    })
    | blocks(*_FLUX_SINGLE, {"linear1": "attn.to_qkv_mlp_proj", "linear2": "attn.to_out"})
    | blocks("", "", _FLUX_ENDS | _FINAL | {
        "time_in.in_layer": "time_guidance_embed.timestep_embedder.linear_1",
        "time_in.out_layer": "time_guidance_embed.timestep_embedder.linear_2",
        "guidance_in.in_layer": "time_guidance_embed.guidance_embedder.linear_1",
        "guidance_in.out_layer": "time_guidance_embed.guidance_embedder.linear_2",
        "double_stream_modulation_img.lin": "double_stream_modulation_img.linear",
        "double_stream_modulation_txt.lin": "double_stream_modulation_txt.linear",
        "single_stream_modulation.lin": "single_stream_modulation.linear",
    }),
    swapped=("norm_out.linear",),
)  # fmt: skip
SD3 = Original(
    "sd3",
    ("pos_embed.proj", "time_text_embed.text_embedder.linear_1", "transformer_blocks.0.norm1_context.linear"),
    blocks("joint_blocks.{}", "transformer_blocks.{}", {
        "x_block.attn.qkv": _QKV, "x_block.attn.proj": "attn.to_out.0",
        "context_block.attn.qkv": _ADDED, "context_block.attn.proj": "attn.to_add_out",
        "x_block.attn2.qkv": "attn2.to_q attn2.to_k attn2.to_v", "x_block.attn2.proj": "attn2.to_out.0",
        "x_block.mlp.fc1": "ff.net.0.proj", "x_block.mlp.fc2": "ff.net.2",
        "context_block.mlp.fc1": "ff_context.net.0.proj", "context_block.mlp.fc2": "ff_context.net.2",
        "x_block.adaLN_modulation.1": "norm1.linear", "context_block.adaLN_modulation.1": "norm1_context.linear",
    })
    | blocks("", "", _FINAL | {
        "context_embedder": "context_embedder", "x_embedder.proj": "pos_embed.proj", "final_layer.linear": "proj_out",
        "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
        "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
        "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
        "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
    }),
    swapped=("norm_out.linear",),
    swapped_in_last=("transformer_blocks.{}.norm1_context.linear",),
)  # fmt: skip
AURAFLOW = Original(
    "auraflow",
    ("pos_embed.proj", "time_step_proj.linear_1"),
    blocks("double_layers.{}", "joint_transformer_blocks.{}", {
        "attn.w2q": "attn.to_q", "attn.w2k": "attn.to_k", "attn.w2v": "attn.to_v", "attn.w2o": "attn.to_out.0",
        "attn.w1q": "attn.add_q_proj", "attn.w1k": "attn.add_k_proj", "attn.w1v": "attn.add_v_proj",
        "attn.w1o": "attn.to_add_out", "modX.1": "norm1.linear", "modC.1": "norm1_context.linear",
        "mlpX.c_fc1": "ff.linear_1", "mlpX.c_fc2": "ff.linear_2", "mlpX.c_proj": "ff.out_projection",
        "mlpC.c_fc1": "ff_context.linear_1", "mlpC.c_fc2": "ff_context.linear_2",
        "mlpC.c_proj": "ff_context.out_projection",
    })
    | blocks("single_layers.{}", "single_transformer_blocks.{}", {
        "attn.w1q": "attn.to_q", "attn.w1k": "attn.to_k", "attn.w1v": "attn.to_v", "attn.w1o": "attn.to_out.0",
        "modCX.1": "norm1.linear", "mlp.c_fc1": "ff.linear_1", "mlp.c_fc2": "ff.linear_2",
        "mlp.c_proj": "ff.out_projection",
    })
    | blocks("", "", {
        "t_embedder.mlp.0": "time_step_proj.linear_1", "t_embedder.mlp.2": "time_step_proj.linear_2",
        "cond_seq_linear": "context_embedder", "init_x_linear": "pos_embed.proj", "final_linear": "proj_out",
        "modF.1": "norm_out.linear",
    }),
    swapped=("norm_out.linear",),
)  # fmt: skip
WAN = Original(
    "wan",
    ("condition_embedder.text_embedder.linear_1", "blocks.0.attn1.to_q"),
    blocks("blocks.{}", "blocks.{}", {
        "self_attn.q": "attn1.to_q", "self_attn.k": "attn1.to_k", "self_attn.v": "attn1.to_v",
        "self_attn.o": "attn1.to_out.0", "cross_attn.q": "attn2.to_q", "cross_attn.k": "attn2.to_k",
        "cross_attn.v": "attn2.to_v", "cross_attn.o": "attn2.to_out.0", "cross_attn.k_img": "attn2.add_k_proj",
        "cross_attn.v_img": "attn2.add_v_proj", "ffn.0": "ffn.net.0.proj", "ffn.2": "ffn.net.2",
    })
    | blocks("", "condition_embedder", {
        "time_embedding.0": "time_embedder.linear_1", "time_embedding.2": "time_embedder.linear_2",
        "text_embedding.0": "text_embedder.linear_1", "text_embedding.2": "text_embedder.linear_2",
        "time_projection.1": "time_proj", "img_emb.proj.1": "image_embedder.ff.net.0.proj",
        "img_emb.proj.3": "image_embedder.ff.net.2",
    })
    | blocks("", "", {"head.head": "proj_out", "patch_embedding": "patch_embedding"}),
)  # fmt: skip
HUNYUAN_VIDEO = Original(
    "hunyuan-video",
    ("context_embedder.proj_in", "single_transformer_blocks.0.proj_mlp"),
    blocks(*_FLUX_DOUBLE, {
        "img_attn_qkv": _QKV, "img_attn_proj": "attn.to_out.0", "txt_attn_qkv": _ADDED,
        "txt_attn_proj": "attn.to_add_out", "img_mlp.fc1": "ff.net.0.proj", "img_mlp.fc2": "ff.net.2",
        "txt_mlp.fc1": "ff_context.net.0.proj", "txt_mlp.fc2": "ff_context.net.2",
        "img_mod.linear": "norm1.linear", "txt_mod.linear": "norm1_context.linear",
    })
    | blocks(*_FLUX_SINGLE, _SINGLE | {"modulation.linear": "norm.linear"})
    | blocks("txt_in.individual_token_refiner.blocks.{}", "context_embedder.token_refiner.refiner_blocks.{}", {
        "self_attn_qkv": _QKV, "self_attn_proj": "attn.to_out.0", "mlp.fc1": "ff.net.0.proj", "mlp.fc2": "ff.net.2",
        "adaLN_modulation.1": "norm_out.linear",
    })
    # the same layers as ComfyUI names them
    | blocks(*_FLUX_DOUBLE, _STREAMS | _MLPS | {"img_mod.lin": "norm1.linear", "txt_mod.lin": "norm1_context.linear"})
    | blocks(*_FLUX_SINGLE, {"modulation.lin": "norm.linear"}),
)  # fmt: skip
#: Its blocks are those of HunyuanVideo, without the single ones. ComfyUI's model keeps q, k and v of a stream in one
#: layer, as that of HunyuanVideo does; the released files have a layer for each.
#: Source of the second half: ``scripts/convert_hunyuan_video1_5_to_diffusers.py`` of diffusers.
HUNYUAN_VIDEO_15 = Original(
    "hunyuan-video-15",
    ("context_embedder.proj_in", "context_embedder_2.linear_1"),
    {name: parts for name, parts in HUNYUAN_VIDEO.modules.items() if not name.startswith("single_blocks")}
    | blocks(*_FLUX_DOUBLE, {
        f"{there}_attn_{letter}": name.format(letter)
        for there, name in (("img", "attn.to_{}"), ("txt", "attn.add_{}_proj")) for letter in "qkv"
    })
    | blocks("", "", {
        "byt5_in.fc1": "context_embedder_2.linear_1", "byt5_in.fc2": "context_embedder_2.linear_2",
        "byt5_in.fc3": "context_embedder_2.linear_3", "txt_in.input_embedder": "context_embedder.proj_in",
        "final_layer.linear": "proj_out",
    } | _FINAL),
    swapped=("norm_out.linear",),
)  # fmt: skip
LUMINA2 = Original(
    "lumina2",
    ("time_caption_embed.timestep_embedder.linear_1",),
    {
        original: parts
        for stage in ("layers.{}", "noise_refiner.{}", "context_refiner.{}")
        for original, parts in blocks(stage, stage, {
            "attention.qkv": _QKV, "attention.out": "attn.to_out.0", "feed_forward.w1": "feed_forward.linear_1",
            "feed_forward.w2": "feed_forward.linear_2", "feed_forward.w3": "feed_forward.linear_3",
            "adaLN_modulation.1": "norm1.linear",
        }).items()
    }
    | blocks("", "", {
        "cap_embedder.1": "time_caption_embed.caption_embedder.1",
        "t_embedder.mlp.0": "time_caption_embed.timestep_embedder.linear_1",
        "t_embedder.mlp.2": "time_caption_embed.timestep_embedder.linear_2",
        "final_layer.adaLN_modulation.1": "norm_out.linear_1", "final_layer.linear": "norm_out.linear_2",
        "x_embedder": "x_embedder",
    }),
)  # fmt: skip
Z_IMAGE = Original(
    "z-image",
    ("all_x_embedder.2-1",),
    {
        original: parts
        for stage in ("layers.{}", "noise_refiner.{}", "context_refiner.{}")
        for original, parts in blocks(stage, stage, {
            "attention.qkv": "attention.to_q attention.to_k attention.to_v", "attention.out": "attention.to_out.0",
            "feed_forward.w1": "feed_forward.w1", "feed_forward.w2": "feed_forward.w2",
            "feed_forward.w3": "feed_forward.w3", "adaLN_modulation.0": "adaLN_modulation.0",
        }).items()
    }
    | blocks("", "", {
        "final_layer.linear": "all_final_layer.2-1.linear", "x_embedder": "all_x_embedder.2-1",
        "final_layer.adaLN_modulation.1": "all_final_layer.2-1.adaLN_modulation.1",
        "cap_embedder.1": "cap_embedder.1", "t_embedder.mlp.0": "t_embedder.mlp.0",
        "t_embedder.mlp.2": "t_embedder.mlp.2",
    }),
)  # fmt: skip
PIXART = Original(
    "pixart",
    ("adaln_single.linear", "transformer_blocks.0.attn1.to_q"),
    blocks("blocks.{}", "transformer_blocks.{}", {
        "attn.qkv": "attn1.to_q attn1.to_k attn1.to_v", "attn.proj": "attn1.to_out.0",
        "cross_attn.q_linear": "attn2.to_q", "cross_attn.kv_linear": "attn2.to_k attn2.to_v",
        "cross_attn.proj": "attn2.to_out.0", "mlp.fc1": "ff.net.0.proj", "mlp.fc2": "ff.net.2",
    })
    | blocks("", "", {"x_embedder.proj": "pos_embed.proj", "final_layer.linear": "proj_out",
                      "t_block.1": "adaln_single.linear"}),
)  # fmt: skip
KREA2 = Original(
    "krea2",
    ("text_fusion.projector",),
    {
        original: parts
        for there, here in (("blocks.{}", "transformer_blocks.{}"),
                            ("txtfusion.layerwise_blocks.{}", "text_fusion.layerwise_blocks.{}"),
                            ("txtfusion.refiner_blocks.{}", "text_fusion.refiner_blocks.{}"))
        for original, parts in blocks(there, here, {
            "attn.wq": "attn.to_q", "attn.wk": "attn.to_k", "attn.wv": "attn.to_v", "attn.gate": "attn.to_gate",
            "attn.wo": "attn.to_out.0", "mlp.gate": "ff.gate", "mlp.up": "ff.up", "mlp.down": "ff.down",
        }).items()
    },
)  # fmt: skip
#: Families with the same names of layers in both.
QWEN_IMAGE = Original(
    "qwen-image",
    ("img_in", "txt_in", "transformer_blocks.0.img_mod.1"),
    same=("transformer_blocks.{}.",),
)
LTX = Original(
    "ltx",
    ("proj_in", "time_embed.linear", "transformer_blocks.0.attn1.to_q"),
    blocks("", "", {"patchify_proj": "proj_in", "adaln_single.linear": "time_embed.linear"}),
    same=("transformer_blocks.{}.attn1.", "transformer_blocks.{}.attn2.", "transformer_blocks.{}.ff.net."),
)
HIDREAM = Original(
    "hidream",
    ("double_stream_blocks.0.block.attn1.to_q",),
    same=("double_stream_blocks.{}.block.", "single_stream_blocks.{}.block."),
)
#: Source: ``_convert_non_diffusers_ideogram4_lora_to_diffusers`` of diffusers (``loaders/lora_conversion_utils.py``).
IDEOGRAM4 = Original(
    "ideogram4",
    ("llm_cond_proj", "layers.0.attention.to_q"),
    blocks("layers.{}", "layers.{}", {
        "attention.qkv": "attention.to_q attention.to_k attention.to_v", "attention.o": "attention.to_out.0",
    }),
    same=("layers.{}.feed_forward.", "layers.{}.adaln_modulation"),
)  # fmt: skip

ORIGINALS: tuple[Original, ...] = (
    FLUX, CHROMA, FLUX2, SD3, AURAFLOW, WAN, HUNYUAN_VIDEO, HUNYUAN_VIDEO_15, LUMINA2, Z_IMAGE, PIXART, KREA2,
    QWEN_IMAGE, LTX, HIDREAM, IDEOGRAM4,
)  # fmt: skip
