"""The base class of families of latent diffusion pipelines: VAE, generation, dtypes, devices."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from orthotune.errors import DataError, RecipeError
from orthotune.image.data.batch import Conditions, Sources
from orthotune.image.families.family import Family
from orthotune.quantized.in_place import quantize_in_place


class PipelineFamily(Family):
    """A latent diffusion pipeline of diffusers; its weights are frozen on construction.

    Trained parameters are float32 for any dtype of the pipeline; if the two differ, the model runs under autocast.

    Attributes:
        pipeline_class: name of the diffusers class, as in ``model_index.json``.
        usual_guidance: default guidance of ``generate``.
        frames: latents have a dimension of frames, ``[n, c, frames, h, w]``; an image is a film of one frame.
    """

    pipeline_class: ClassVar[str]
    usual_guidance: float
    frames: ClassVar[bool] = False

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        pipeline.set_progress_bar_config(disable=True)
        for part in self.modules().values():
            part.requires_grad_(False).eval()
        self._rest: torch.device | None = None
        self._computes_in: torch.dtype | None = None
        self._awake = 0

    def quantize(self, word: str) -> int:
        """Quantize the frozen linear layers in the blocks of the denoiser and of the text encoders.

        Args:
            word: as for :func:`~orthotune.quantized.in_place.quantize_in_place`.

        Returns:
            The number of quantized layers.

        Raises:
            RecipeError: an unknown word, or a library that is not installed.
        """
        self._computes_in = self.dtype
        return sum(quantize_in_place(part, word) for part in (self.denoiser, *self.text_encoders.values()))

    def rest_encoders(self, place: torch.device | str = "cpu") -> None:
        """Keep the text encoders and the VAE at another place than the denoiser, except while they work.

        Args:
            place: where they rest.

        Raises:
            RecipeError: a text encoder is trained, and works at every step.
        """
        if any(p.requires_grad for part in self.text_encoders.values() for p in part.parameters()):
            raise RecipeError("text encoders that rest", got="encoders that are trained", do="Leave one of them out")
        self._rest = torch.device(place)
        for part in self.resting_parts():
            part.to(self._rest)

    def resting_parts(self) -> list[nn.Module]:
        """The text encoders and the VAE, which training needs only before and while images are generated."""
        return [part for name, part in self.modules().items() if name in (*self.text_encoder_names, "vae")]

    @contextmanager
    def working(self) -> Iterator[None]:
        """Context in which text encoders and VAE are where the denoiser is; afterwards they rest again."""
        moving = self._rest is not None and self._awake == 0
        self._awake += 1
        try:
            if moving:
                for part in self.resting_parts():
                    part.to(self.device)
            yield
        finally:
            self._awake -= 1
            if moving:
                for part in self.resting_parts():
                    part.to(self._rest)

    def modules(self) -> dict[str, nn.Module]:
        """Every network of the pipeline by attribute name."""
        return {name: part for name, part in self.pipeline.components.items() if isinstance(part, nn.Module)}

    def idle_modules(self, component: str) -> tuple[str, ...]:
        """Prefixes of modules in ``component`` on which no image depends, so that adapters there get no gradient."""
        return ()

    @property
    def device(self) -> torch.device:
        """The device of the denoiser."""
        return next(self.denoiser.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the frozen weights of the denoiser, or of its weights if none is frozen; before quantization."""
        if self._computes_in is not None:
            return self._computes_in
        # Called in each step; one of the first weights is usually frozen.
        known = (p for p in self.denoiser.parameters() if p.is_floating_point())
        first = next(known)
        frozen = first if not first.requires_grad else next((p for p in known if not p.requires_grad), first)
        return frozen.dtype

    @property
    def pixels_per_latent(self) -> int:
        config = self.pipeline.vae.config
        stages = getattr(config, "temperal_downsample", None)  # VAEs of films name their stages in time, so spelled
        return int(2 ** (len(config.block_out_channels) - 1 if stages is None else len(stages)))

    def latent_shape(self, height: int, width: int, frames: int = 1) -> tuple[int, ...]:
        """The shape of the latents of one image or clip, without the batch.

        Args:
            height: in pixels.
            width: in pixels.
            frames: of the clip; 1 for an image.
        """
        config, cell = self.pipeline.vae.config, self.pixels_per_latent
        channels = getattr(config, "z_dim", None) or config.latent_channels
        times = (1 + (frames - 1) // self.frames_per_latent,) if self.frames else ()
        return (int(channels), *times, height // cell, width // cell)

    @torch.no_grad()
    def encode_images(self, images: Tensor, generator: torch.Generator) -> Tensor:
        self.check_images(images)
        with self.working():
            vae = self.pipeline.vae
            found = self._posterior(images.to(vae.device, vae.dtype) / 127.5 - 1)
        mean, std = found.mean.float(), found.std.float()
        return self._scaled(mean + std * torch.randn(mean.shape, generator=generator).to(mean.device))

    def _posterior(self, pixels: Tensor) -> Any:
        """What the VAE says of pixels of -1..1, of images or clips: a normal distribution of latents."""
        still = self.frames and pixels.ndim == 4
        return self.pipeline.vae.encode(pixels.unsqueeze(2) if still else pixels).latent_dist

    @torch.no_grad()
    def encode_exactly(self, pixels: Tensor) -> Tensor:
        """The mean of the latents of pixels, scaled for the denoiser: what editing models read, which has no noise.

        Args:
            pixels: float [n, 3, H, W] of -1..1.
        """
        with self.working():
            vae = self.pipeline.vae
            return self._scaled(self._posterior(pixels.to(vae.device, vae.dtype)).mean.float())

    def _scaled(self, latents: Tensor) -> Tensor:
        """Latents of the VAE, scaled for the denoiser; :meth:`_unscaled` undoes this."""
        center, spread = self._latent_statistics(latents)
        return (latents - center) / spread

    def _unscaled(self, latents: Tensor) -> Tensor:
        center, spread = self._latent_statistics(latents)
        return latents * spread + center

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Decode latents, scaled for the denoiser, to images, uint8 ``[n, 3, H, W]``, or clips, on the CPU."""
        vae = self.pipeline.vae
        pixels = self._pixels(self._unscaled(latents.float()).to(vae.dtype))
        pixels = pixels[:, :, 0] if self.frames and latents.shape[2] == 1 else pixels
        return (pixels.float() * 127.5 + 127.5).clamp(0, 255).round().to(torch.uint8).cpu()

    def _pixels(self, latents: Tensor) -> Tensor:
        """What the VAE decodes."""
        found: Tensor = self.pipeline.vae.decode(latents, return_dict=False)[0]
        return found

    def _latent_statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        # The denoiser reads (z - center) / spread: scaling_factor is the inverse of a standard deviation, SD3 and FLUX
        # have a shift as well, and some VAEs have both per channel.
        config = self.pipeline.vae.config

        def numbers(name: str, without: float) -> Tensor:
            value = getattr(config, name, None)
            return torch.tensor(without if value is None else value, device=like.device).view(1, -1, *rest)

        rest = [1] * (like.ndim - 2)
        center = numbers("shift_factor", 0.0) + numbers("latents_mean", 0.0)
        return center, numbers("latents_std", 1.0) / numbers("scaling_factor", 1.0)

    def encode_captions(self, captions: Sequence[str], sources: Sources | None = None) -> Conditions:
        if not captions:
            raise DataError("captions", got="none", needed="one or more")
        learns = any(p.requires_grad for part in self.text_encoders.values() for p in part.parameters())
        with nullcontext() if learns else torch.no_grad(), self.working(), self.precision():
            if sources is not None and self.text_reads_references:
                return self._encode_reading(list(captions), sources)
            return self._encode(list(captions))

    @abstractmethod
    def _encode(self, captions: list[str]) -> Conditions: ...

    def _encode_reading(self, captions: list[str], sources: Sources) -> Conditions:
        """Captions together with the images that they are about, for families with ``text_reads_references``."""
        raise NotImplementedError

    def check_sources(self, sources: Sources | None) -> None:
        """Check that images to edit are there where the model reads them, and only there.

        Args:
            sources: the images, or None.

        Raises:
            RecipeError: images are missing, are too many, or a mask is missing.
        """
        needed = {"": "captions alone", "references": "reference images", "mask": "an image and a mask"}[self.reads]
        found = 0 if sources is None else sources.images.shape[1]
        masked = sources is not None and sources.mask is not None
        if (found == 0) != (self.reads == "") or masked != (self.reads == "mask"):
            got = "none" if sources is None else "images and masks" if masked else f"{found} images without a mask"
            raise RecipeError(f"images to edit for {self.name}", got=got, needed=needed)
        if found > self.most_references:
            raise RecipeError(f"{found} reference images for {self.name}", needed=f"at most {self.most_references}")

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
        sources: Sources | None = None,
        frames: int = 1,
    ) -> Tensor:
        if not prompts or len(prompts) != len(seeds):
            raise DataError(f"{len(prompts)} prompts", got=f"{len(seeds)} seeds", needed="as many, at least one")
        self.check_sources(sources)
        if sources is not None:
            height, width = sources.images.shape[-2:]
        height, width = height or self.native_size, width or self.native_size
        self.check_size(height, width)
        self.check_frames(frames)
        images = []
        with self._evaluating(), self.working():
            for at in range(0, len(prompts), batch_size):
                # one CPU generator per image, so that its noise depends on neither the batch nor the device
                given: dict[str, Any] = {"num_frames": frames} if self.films else {}
                given |= {} if sources is None else {"sources": sources.rows(slice(at, at + batch_size))}
                generators = [torch.Generator().manual_seed(seed) for seed in seeds[at : at + batch_size]]
                with self.precision():
                    latents = self._sample(
                        list(prompts[at : at + batch_size]),
                        generators,
                        num_inference_steps=steps,
                        **self._guidance(self.usual_guidance if guidance is None else guidance),
                        height=height,
                        width=width,
                        **given,
                    )
                images.append(self.decode_latents(latents))
        return torch.cat(images)

    def _guidance(self, scale: float) -> dict[str, Any]:
        """The arguments of the pipeline for a scale of classifier-free guidance."""
        return {"guidance_scale": scale}

    def _sample(self, prompts: list[str], generators: list[torch.Generator], **options: Any) -> Tensor:
        output = self.pipeline(prompt=prompts, generator=generators, output_type="latent", **options)
        latents: Tensor = output.images
        return latents

    def check_images(self, images: Tensor) -> None:
        """Check that images can be encoded.

        Args:
            images: uint8 ``[n, 3, H, W]``, or clips ``[n, 3, frames, H, W]``.

        Raises:
            DataError: another type or shape.
            RecipeError: a side is not a multiple of ``divisor``, or a number of frames that is not possible.
        """
        if images.dtype != torch.uint8 or images.ndim not in (4, 5) or images.shape[1] != 3:
            raise DataError("images", got=f"{images.dtype} {tuple(images.shape)}", needed="uint8 [n, 3, H, W]")
        self.check_size(*images.shape[-2:])
        if images.ndim == 5:
            self.check_frames(images.shape[2])

    def check_size(self, height: int, width: int) -> None:
        """Check that a size is possible for the model.

        Args:
            height: in pixels.
            width: in pixels.

        Raises:
            RecipeError: a side is not a multiple of ``divisor``.
        """
        wrong = [side for side in (height, width) if side < 1 or side % self.divisor]
        if wrong:
            near = max(self.divisor, round(wrong[0] / self.divisor) * self.divisor)
            raise RecipeError(
                f"images of {height} x {width} pixels for {self.name}",
                needed=f"sides that are multiples of {self.divisor}", do=f"Take {near} instead of {wrong[0]}",
            )  # fmt: skip

    def precision(self) -> AbstractContextManager[Any]:
        """Autocast to the dtype of the pipeline if some of its weights have another dtype."""
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
            for module, mode in modes:  # parents come first, so that a child with another mode is set last
                if module.training != mode:
                    module.train(mode)
