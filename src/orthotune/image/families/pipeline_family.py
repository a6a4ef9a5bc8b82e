"""What the families of diffusers' latent pipelines share: pictures in and out of the VAE, drawing, dtypes, devices."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from orthotune.errors import DataError, RecipeError
from orthotune.image.data.batch import Conditions
from orthotune.image.families.family import Family


class PipelineFamily(Family):
    """A latent diffusion pipeline of diffusers, frozen when it is made.

    Trained parameters are float32 whatever the pipeline's dtype; where the two differ the model runs under autocast.

    Attributes:
        pipeline_class: name of diffusers' class, as ``model_index.json`` gives it.
        usual_guidance: what ``generate`` takes when nobody says.
    """

    pipeline_class: ClassVar[str]
    usual_guidance: float

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        pipeline.set_progress_bar_config(disable=True)
        for part in self.modules().values():
            part.requires_grad_(False).eval()

    def modules(self) -> dict[str, nn.Module]:
        """Every network of the pipeline by attribute name."""
        return {name: part for name, part in self.pipeline.components.items() if isinstance(part, nn.Module)}

    def idle_modules(self, component: str) -> tuple[str, ...]:
        """Starts of the names of modules in ``component`` on which no image depends: adapters there learn nothing."""
        return ()

    @property
    def device(self) -> torch.device:
        """Where the denoiser is."""
        return next(self.denoiser.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the denoiser's frozen weights; of all of them where none is frozen."""
        # Asked for in every step: the first frozen weight is near the first of all.
        known = (p for p in self.denoiser.parameters() if p.is_floating_point())
        first = next(known)
        frozen = first if not first.requires_grad else next((p for p in known if not p.requires_grad), first)
        return frozen.dtype

    @property
    def pixels_per_latent(self) -> int:
        return int(2 ** (len(self.pipeline.vae.config.block_out_channels) - 1))

    @torch.no_grad()
    def encode_pictures(self, pictures: Tensor, draw: torch.Generator) -> Tensor:
        if pictures.dtype != torch.uint8 or pictures.ndim != 4 or pictures.shape[1] != 3:
            raise DataError("pictures", got=f"{pictures.dtype} {tuple(pictures.shape)}", needed="uint8 [n, 3, H, W]")
        self.check_size(*pictures.shape[2:])
        vae = self.pipeline.vae
        found = vae.encode(pictures.to(vae.device, vae.dtype) / 127.5 - 1).latent_dist
        mean, std = found.mean.float(), found.std.float()
        latents = mean + std * torch.randn(mean.shape, generator=draw).to(mean.device)
        center, spread = self._latent_statistics(latents)
        return (latents - center) / spread

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Latents as the denoiser reads them to images, uint8 ``[n, 3, H, W]`` on the CPU."""
        vae = self.pipeline.vae
        latents = latents.float()
        center, spread = self._latent_statistics(latents)
        pixels = vae.decode((latents * spread + center).to(vae.dtype), return_dict=False)[0]
        return (pixels.float() * 127.5 + 127.5).clamp(0, 255).round().to(torch.uint8).cpu()

    def _latent_statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        # The denoiser reads (z - center) / spread: scaling_factor is one over a standard deviation, SD3 and FLUX also
        # shift, and some VAEs give both for each channel.
        config = self.pipeline.vae.config

        def numbers(name: str, without: float) -> Tensor:
            value = getattr(config, name, None)
            return torch.tensor(without if value is None else value, device=like.device).view(1, -1, 1, 1)

        center = numbers("shift_factor", 0.0) + numbers("latents_mean", 0.0)
        return center, numbers("latents_std", 1.0) / config.scaling_factor

    def encode_captions(self, captions: Sequence[str]) -> Conditions:
        if not captions:
            raise DataError("captions", got="none", needed="one or more")
        learns = any(p.requires_grad for part in self.text_encoders.values() for p in part.parameters())
        with nullcontext() if learns else torch.no_grad(), self.precision():
            return self._encode(list(captions))

    @abstractmethod
    def _encode(self, captions: list[str]) -> Conditions: ...

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        steps: int = 20,
        guidance: float | None = None,
        height: int | None = None,
        width: int | None = None,
        batch_size: int = 16,
    ) -> Tensor:
        if not prompts or len(prompts) != len(seeds):
            raise DataError(f"{len(prompts)} prompts", got=f"{len(seeds)} seeds", needed="as many, at least one")
        height, width = height or self.native_size, width or self.native_size
        self.check_size(height, width)
        pictures = []
        with self._evaluating():
            for at in range(0, len(prompts), batch_size):
                # a generator for each image, on the CPU: its noise depends on neither the batch nor the device
                draws = [torch.Generator().manual_seed(seed) for seed in seeds[at : at + batch_size]]
                with self.precision():
                    latents = self._draw(
                        list(prompts[at : at + batch_size]),
                        draws,
                        num_inference_steps=steps,
                        guidance_scale=self.usual_guidance if guidance is None else guidance,
                        height=height,
                        width=width,
                    )
                pictures.append(self.decode_latents(latents))
        return torch.cat(pictures)

    def _draw(self, prompts: list[str], generators: list[torch.Generator], **options: Any) -> Tensor:
        drawn = self.pipeline(prompt=prompts, generator=generators, output_type="latent", **options)
        latents: Tensor = drawn.images
        return latents

    def check_size(self, height: int, width: int) -> None:
        """Refuse a size in pixels that the model cannot read.

        Raises:
            RecipeError: a side is no multiple of ``divisor``.
        """
        wrong = [side for side in (height, width) if side < 1 or side % self.divisor]
        if wrong:
            near = max(self.divisor, round(wrong[0] / self.divisor) * self.divisor)
            raise RecipeError(
                f"pictures of {height} x {width} pixels for {self.name}",
                needed=f"sides that are multiples of {self.divisor}", do=f"Take {near} instead of {wrong[0]}",
            )  # fmt: skip

    def precision(self) -> AbstractContextManager[Any]:
        """Autocast to the pipeline's dtype where some of the weights that run are of another."""
        dtype = self.dtype
        if dtype == torch.float32:
            return nullcontext()
        running = [self.denoiser, *self.text_encoders.values()]
        mixed = any(p.dtype != dtype for m in running for p in m.parameters() if p.is_floating_point())
        return torch.autocast(self.device.type, dtype=dtype) if mixed else nullcontext()

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        running = [part for part in self.modules().values() if part.training or any(m.training for m in part.modules())]
        modes = [(module, module.training) for part in running for module in part.modules()]
        for part in running:
            part.eval()
        try:
            yield
        finally:
            for module, mode in modes:  # parents come first, so that a child which differs is set after them
                if module.training != mode:
                    module.train(mode)
