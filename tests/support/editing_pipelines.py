"""Tiny pipelines of the models that read images to edit: the real classes made from configs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from orthotune.image.data.batch import Sources
from orthotune.image.families.qwen_image_edit import pillow_images


def _flux(pipeline_class: str, in_channels: int) -> Any:
    import diffusers
    from diffusers import FluxTransformer2DModel

    from tests.support.tiny_pipelines import FIRST, JOINT, _clip, _clip_tokenizer, _t5, _t5_tokenizer
    from tests.support.transformer_pipelines import flow

    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=in_channels, out_channels=16, num_layers=1, num_single_layers=1,
        attention_head_dim=8, num_attention_heads=2, joint_attention_dim=JOINT, pooled_projection_dim=FIRST[0],
        guidance_embeds=True, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    return getattr(diffusers, pipeline_class)(
        transformer=transformer, scheduler=flow(use_dynamic_shifting=True), vae=_exact_vae(0.3611, 0.1159),
        text_encoder=_clip(FIRST), tokenizer=_clip_tokenizer(), text_encoder_2=_t5(), tokenizer_2=_t5_tokenizer(),
    )  # fmt: skip


def _exact_vae(scale: float, shift: float | None = None) -> Any:
    """A VAE whose noise is of 1e-7: pipelines of inpainting draw it anew, which training does not."""
    from tests.support.tiny_pipelines import _vae

    vae = _vae(scaling_factor=scale, shift_factor=shift)
    with torch.no_grad():
        vae.quant_conv.weight[4:].zero_()
        vae.quant_conv.bias[4:].fill_(-30.0)
    return vae


def _qwen(pipeline_class: str) -> Any:
    import diffusers
    from transformers import Qwen2VLProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    from tests.support.transformer_pipelines import qwen_image_parts

    parts = qwen_image_parts()
    tokenizer = parts["tokenizer"]
    images = Qwen2VLImageProcessorPil(patch_size=14, merge_size=2, min_pixels=28 * 28, max_pixels=56 * 56)

    class WithoutVideos(Qwen2VLProcessor):
        """The part for videos, which is needed for none of these models, is not there without torchvision."""

        def check_argument_for_proper_class(self, name: str, part: Any) -> Any:
            return type(part) if name == "video_processor" else super().check_argument_for_proper_class(name, part)

    processor = WithoutVideos(image_processor=images, tokenizer=tokenizer)
    return getattr(diffusers, pipeline_class)(processor=processor, **parts)


def _sdxl_inpainting() -> Any:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLInpaintPipeline

    from tests.support.tiny_pipelines import _BETAS, FIRST, JOINT, SECOND, _clip, _clip_tokenizer, _unet

    unet = _unet(
        JOINT, in_channels=9, attention_head_dim=(2, 4), use_linear_projection=True,
        transformer_layers_per_block=(1, 2), addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + SECOND[1],
    )  # fmt: skip
    return StableDiffusionXLInpaintPipeline(
        vae=_exact_vae(0.13025), text_encoder=_clip(FIRST), text_encoder_2=_clip(SECOND, projected=True),
        tokenizer=_clip_tokenizer(), tokenizer_2=_clip_tokenizer(), unet=unet,
        scheduler=EulerDiscreteScheduler(**_BETAS, timestep_spacing="leading", steps_offset=1),
    )  # fmt: skip


EDITING: dict[str, Callable[[], Any]] = {
    "flux-kontext": lambda: _flux("FluxKontextPipeline", 16),
    "flux-fill": lambda: _flux("FluxFillPipeline", 48),
    "qwen-image-edit": lambda: _qwen("QwenImageEditPipeline"),
    "qwen-image-edit-plus": lambda: _qwen("QwenImageEditPlusPipeline"),
    "sdxl-inpainting": _sdxl_inpainting,
}


def sources_of(family: Any, count: int, height: int, width: int) -> Sources | None:
    """Images to edit for ``count`` images, as many as the family reads."""
    if not family.reads:
        return None
    noise = torch.Generator().manual_seed(8)
    shape = (count, family.most_references, 3, height, width)
    images = torch.randint(256, shape, generator=noise, dtype=torch.uint8)
    mask = torch.zeros(count, height, width, dtype=torch.bool)
    mask[:, : height // 2, 4:] = True
    return Sources(images, mask if family.reads == "mask" else None)


def as_the_pipeline_takes_them(sources: Sources | None, row: int) -> dict[str, Any]:
    """The arguments of a pipeline for the images to edit of one image."""
    if sources is None:
        return {}
    pictures = pillow_images(sources.images[row])
    if sources.mask is not None:
        mask = pillow_images(sources.mask[row].to(torch.uint8).mul(255).expand(1, 3, -1, -1))
        return {"image": pictures[0], "mask_image": mask[0], "strength": 1.0}
    return {"image": pictures if len(pictures) > 1 else pictures[0]}
