"""A text-to-image pipeline with control images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

from orthotune.errors import AdapterFileError, ConfigError, DataError, OutputError
from orthotune.files.atomic import atomic_write
from orthotune.image.adapter.adapters import merge
from orthotune.image.adapter.saved_adapter import load_adapter
from orthotune.image.control.hint_encoder import CONFIG, HintEncoder, check_fits, load_hint_encoder
from orthotune.image.control.hinted import hinted
from orthotune.image.control.images import hints_of
from orthotune.image.families.flux import unpack
from orthotune.image.families.pipeline_family import PipelineFamily
from orthotune.image.families.registry import open_family


class ControlPipeline:
    """Generates images of a prompt in the shape of a control image.

    Attributes:
        family: the model, with its adapter; ``family.pipeline`` is diffusers' own pipeline.
        hint_encoder: encodes the control images.
        signal: kind of the control images, such as "canny".

    Example:
        >>> pipeline = ControlPipeline.from_pretrained("models/sd15", "runs/control-oft/adapter")  # doctest: +SKIP
        >>> pipeline("a red house", "edges.png", seed=0).images[0].save("house.png")  # doctest: +SKIP
    """

    def __init__(self, family: PipelineFamily, hint_encoder: HintEncoder) -> None:
        """Combine a model and an encoder.

        Args:
            family: the model, with its adapter.
            hint_encoder: the encoder of control images.

        Raises:
            AdapterFileError: the encoder was made for another kind of model.
        """
        check_fits(hint_encoder, family)
        self.family = family
        self.hint_encoder = hint_encoder.to(family.device).eval().requires_grad_(False)

    @classmethod
    def from_pretrained(
        cls,
        base: str | Path,
        adapter: str | Path | None = None,
        *,
        hint_encoder: str | Path | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> ControlPipeline:
        """Load a base model with the output of ``orthotune train control``.

        Args:
            base: folder or hub name of the base model. Without an adapter, a folder that :meth:`save_pretrained` or
                full finetuning wrote.
            adapter: folder with the adapter and the hint encoder.
            hint_encoder: folder with the encoder, if it is another folder, such as for a base that the adapter was
                merged into with another tool.
            dtype: of the weights of the base; adapter and encoder stay float32.
            device: where the networks go.

        Raises:
            RecipeError: there is no such model, or its family is not supported.
            AdapterFileError: adapter or hint encoder is missing, damaged, or made for another model.
        """
        source = Path(hint_encoder or adapter or base).expanduser()
        if adapter is not None and (Path(adapter) / "model_index.json").is_file():
            raise AdapterFileError(
                f"adapter {adapter}",
                got="a complete model",
                do="Pass it alone: ControlPipeline.from_pretrained(folder)",
            )
        if adapter is None and hint_encoder is None and not (source / CONFIG).is_file():
            raise AdapterFileError(
                f"a control pipeline from {base}", got="a model without a hint encoder",
                do="Pass the folder of the adapter as the second argument",
            )  # fmt: skip
        encoder = load_hint_encoder(source)  # before a large model is loaded
        family = open_family(base, dtype, device)
        check_fits(encoder, family)
        if adapter is not None:
            load_adapter(family, Path(adapter).expanduser())
            for part in family.modules().values():
                part.requires_grad_(False)
        return cls(family, encoder)

    @property
    def signal(self) -> str | None:
        """The kind of the control images."""
        return self.hint_encoder.shape.signal

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        control_image: Any,
        *,
        seed: int | Sequence[int] | None = None,
        resize: bool = False,
        height: int | None = None,
        width: int | None = None,
        num_images_per_prompt: int = 1,
        output_type: str = "pil",
        **options: Any,
    ) -> Any:
        """Generate images, one for each pair of prompt and control image.

        Args:
            prompt: one or several. A single prompt is used with all control images.
            control_image: one or several, see :func:`~orthotune.image.control.images.hints_of`. A single control image
                is used with all prompts.
            seed: one seed per image, or the first of consecutive seeds. An image depends only on its own seed, not on
                the rest of the batch.
            resize: resize control images whose size is not ``height`` and ``width``, or not possible for the model.
            height: in pixels; by default that of the control image.
            width: in pixels; by default that of the control image.
            num_images_per_prompt: images per pair, next to each other in the result.
            output_type: "pil", "pt" (float [n, 3, H, W] of 0..1), "np" or "latent", as in diffusers.
            options: further arguments of the diffusers pipeline, such as ``num_inference_steps``.

        Returns:
            ``ImagePipelineOutput`` of diffusers, with ``images``.

        Raises:
            DataError: control images of another size, unreadable, or in another number than the prompts.
            ConfigError: options that contradict each other.
        """
        if (height is None) != (width is None):
            raise ConfigError("height without width" if width is None else "width without height", do="Pass both")
        size = (height, width) if height is not None and width is not None else None
        hints = hints_of(control_image, self.signal, size=size, divisor=self.family.divisor, resize=resize)
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        count = max(len(prompts), len(hints))
        if not prompts or {len(prompts), len(hints)} - {1, count}:
            raise DataError(
                "control images", got=f"{len(hints)} with {len(prompts)} prompts", needed="as many, or one for all"
            )
        each = [number for number in range(count) for _ in range(num_images_per_prompt)]
        prompts = [prompts[number % len(prompts)] for number in each]
        for name, value in options.items():  # further lists of prompts are repeated like the prompts
            if "prompt" in name and isinstance(value, list) and len(value) == count:
                options[name] = [value[number] for number in each]
        options |= {"height": hints.shape[2], "width": hints.shape[3]} | _generators(seed, len(each), options)
        features = self.hint_encoder(hints.to(self.family.device))[[number % len(hints) for number in each]]
        with hinted(self.family.denoiser, self.family.entry, features), self.family.precision():
            generated = self.family.pipeline(prompt=prompts, output_type="latent", **options)
        return self._output(generated, hints.shape[2:], output_type)

    def merge(self) -> ControlPipeline:
        """Merge the adapter into the weights and remove it; generated images stay the same. Returns the pipeline."""
        from diffusers.utils.peft_utils import recurse_remove_peft_layers

        merge(self.family)
        for part in self.family.modules().values():
            if any(isinstance(module, BaseTunerLayer) for module in part.modules()):
                recurse_remove_peft_layers(part)
                _remove_peft_config(part)
        return self

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the complete model and the hint encoder into ``folder``, atomically.

        Raises:
            ConfigError: the adapter is not merged.
            OutputError: the folder is not empty or cannot be written.
        """
        if any(
            isinstance(module, BaseTunerLayer) for part in self.family.modules().values() for module in part.modules()
        ):
            raise ConfigError(
                f"a complete model in {folder}", got="an adapter that is not merged",
                do="Call merge() first, or keep base and adapter as they are",
            )  # fmt: skip
        folder = Path(folder)
        if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
            raise OutputError(
                f"a complete model in {folder}", got="existing files", do="Choose another folder, or remove it"
            )
        with atomic_write(folder) as partial:
            self.family.pipeline.save_pretrained(partial)
            self.hint_encoder.save(partial)

    def _output(self, generated: Any, size: Sequence[int], output_type: str) -> Any:
        from diffusers import ImagePipelineOutput

        if output_type == "latent":
            return generated
        latents: Tensor = generated.images
        if latents.ndim == 3:  # FLUX keeps its patches packed
            latents = unpack(latents, *(side // self.family.pixels_per_latent for side in size))
        images = self.family.decode_latents(latents).float() / 255
        return ImagePipelineOutput(_as(output_type, images))


def _generators(seed: int | Sequence[int] | None, count: int, options: dict[str, Any]) -> dict[str, Any]:
    if seed is None:
        return {}
    if options.get("generator") is not None:
        raise ConfigError("seed and generator", got="both", do="Pass one of them")
    seeds = [seed + number for number in range(count)] if isinstance(seed, int) else list(seed)
    if len(seeds) != count:
        raise ConfigError(f"{len(seeds)} seeds", needed=f"{count}, one for each image, or a single number")
    # On the CPU and one per image, so that the noise depends on neither the batch nor the device.
    return {"generator": [torch.Generator().manual_seed(number) for number in seeds]}


def _as(output_type: str, images: Tensor) -> Any:
    from diffusers.image_processor import VaeImageProcessor

    if output_type not in ("pil", "pt", "np"):
        raise ConfigError(f"output_type={output_type!r}", needed="pil, pt, np or latent")
    return images if output_type == "pt" else VaeImageProcessor().postprocess(
        images, output_type, do_denormalize=[False] * len(images)
    )  # fmt: skip


def _remove_peft_config(part: Any) -> None:
    if hasattr(part, "peft_config"):
        del part.peft_config
    if hasattr(part, "_hf_peft_config_loaded"):
        part._hf_peft_config_loaded = False
