"""Pipelines of classes without a family: a flow whose transformer is called as most are is tried, with a warning.

What the transformer reads is not written down anywhere: the pipeline itself is started, and the call of its transformer
is looked at. Nothing is guessed: a call that depends on the size of the image, on the length of a caption, or that
packs the latents, is refused.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from orthotune.errors import RecipeError
from orthotune.image.data.batch import Conditions
from orthotune.image.families.pipeline_family import PipelineFamily
from orthotune.image.families.transformer_family import TransformerFamily

#: names of linear layers of attention in diffusers' transformers
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
_LATENTS, _TIME = "hidden_states", "timestep"
#: captions of different lengths, and sides in units of the divisor, with which the pipeline is started
_CAPTIONS, _SIDES = ("a", "a red digit on a green background"), (2, 3)


class _Seen(Exception):
    pass


class UnknownTransformer(TransformerFamily):
    """A pipeline of a class without a family, whose transformer takes latents, a time and encoded captions.

    Args:
        pipeline: the diffusers pipeline.

    Raises:
        RecipeError: the transformer is called in another way; the message says in which.
    """

    text_encoder_names: ClassVar[tuple[str, ...]] = ()
    usual_guidance = 4.0
    multiple = 16

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        linear = [name for name, module in self.denoiser.named_modules() if isinstance(module, nn.Linear)]
        type(self).attention = tuple(one for one in _ATTENTION if any(name.endswith(f".{one}") for name in linear))
        if not self.attention:
            raise self._refusal("no layers of attention with the usual names")
        self.flow_time, self.sign = self._conventions()
        warnings.warn(
            f"{self.pipeline_class} has no family here and is tried as a plain flow: its transformer reads "
            f"{self._time_in_words}. Look at the samples at step 0 before a long training.",
            stacklevel=2,
        )

    @property
    def native_size(self) -> int:
        size = getattr(self.pipeline, "default_sample_size", None)
        return int(size) * self.pixels_per_latent if isinstance(size, int) else self.native

    @property
    def _time_in_words(self) -> str:
        return "times from noise to the image" if not self.flow_time else f"times from {self.flow_time:g}, noise, to 0"

    def _conventions(self) -> tuple[float, int]:
        """What the transformer reads at pure noise, and the sign of the velocity in what it returns."""
        first, second = (self._called(list(_CAPTIONS[:1]), side) for side in _SIDES)
        longer = self._called(list(_CAPTIONS[1:]), _SIDES[0])
        for other, what in ((second, "the size of the image"), (longer, "the length of a caption")):
            if _sizes(first) != _sizes(other):
                raise self._refusal(f"inputs whose shape depends on {what}")
        if any(not torch.equal(first[name], second[name]) for name in _tensors(first)):
            raise self._refusal("inputs that depend on the size of the image")
        time = float(first[_TIME].flatten()[0])
        steps = float(self.pipeline.scheduler.config.num_train_timesteps)
        known = next((one for one in (0.0, 1.0, steps) if abs(time - one) <= 1e-3 * max(one, 1.0)), None)
        if known is None or first[_TIME].ndim > 1:
            raise self._refusal(f"the time {time:g} at pure noise")
        return known, self._sign()

    def _sign(self) -> int:
        outputs: list[Tensor] = []
        scheduler, step = self.pipeline.scheduler, self.pipeline.scheduler.step
        handle = self.denoiser.register_forward_hook(lambda _, given, found: outputs.append(found[0]))

        def stepped(model_output: Tensor, *given: Any, **named: Any) -> Any:
            outputs.append(model_output)
            raise _Seen

        scheduler.step = stepped
        try:
            self._start(list(_CAPTIONS[:1]), _SIDES[0])
        finally:
            handle.remove()
            scheduler.step = step
        own, used = (tensor.float() for tensor in outputs[-2:])
        for sign in (1, -1):
            if own.shape == used.shape and torch.allclose(used, sign * own, rtol=0, atol=1e-6):
                return sign
        raise self._refusal("an output that the pipeline changes before its scheduler")

    def _called(self, captions: list[str], side: int) -> dict[str, Any]:
        """The arguments of the transformer, by name, in the first step for these captions."""
        found: dict[str, Any] = {}
        forward = inspect.signature(type(self.pipeline.transformer).forward)

        def look(module: nn.Module, given: Any, named: Any) -> None:
            found.update(forward.bind_partial(module, *given, **named).arguments)
            raise _Seen

        handle = self.denoiser.register_forward_pre_hook(look, with_kwargs=True)
        try:
            self._start(captions, side)
        finally:
            handle.remove()
        if not isinstance(found.get(_LATENTS), Tensor) or not isinstance(found.get(_TIME), Tensor):
            raise self._refusal("a transformer without hidden_states and timestep")
        pixels = side * self.divisor
        if tuple(found[_LATENTS].shape) != (len(captions), *self.latent_shape(pixels, pixels)):
            raise self._refusal(f"latents of shape {tuple(found[_LATENTS].shape)}, which are packed or guided")
        return {name: value for name, value in found.items() if name != "self"}

    def _start(self, captions: list[str], side: int) -> None:
        known, pixels = inspect.signature(type(self.pipeline).__call__).parameters, side * self.divisor
        wanted = {"guidance_scale": 1.0, "num_frames": 1, "use_resolution_binning": False}
        options = {name: value for name, value in wanted.items() if name in known}
        generators = [torch.Generator().manual_seed(0) for _ in captions]
        try:
            self.pipeline(prompt=list(captions), num_inference_steps=1, height=pixels, width=pixels,
                          output_type="latent", generator=generators, **options)  # fmt: skip
        except _Seen:
            return
        except Exception as fault:  # any pipeline may be here, with any demand of its own
            raise self._refusal(
                f"{type(fault).__name__}: {str(fault).splitlines()[0] if str(fault) else ''}"
            ) from fault

    def _encode(self, captions: list[str]) -> Conditions:
        return dict(_tensors(self._called(captions, _SIDES[0])))

    def velocity(self, denoiser: nn.Module, noisy: Tensor, times: Tensor, conditions: Conditions) -> Tensor:
        found: Tensor = denoiser(
            hidden_states=noisy.to(self.dtype),
            timestep=times * self.flow_time if self.flow_time else 1 - times,
            **self.inputs(conditions, noisy),
            return_dict=False,
        )[0]
        return self.sign * found

    def _sample(self, prompts: list[str], generators: list[torch.Generator], **options: Any) -> Tensor:
        known = inspect.signature(type(self.pipeline).__call__).parameters
        wanted = {"num_frames": 1, "use_resolution_binning": False}
        options |= {name: value for name, value in wanted.items() if name in known}
        output = self.pipeline(prompt=prompts, generator=generators, output_type="latent", **options)
        latents: Tensor = output.images if hasattr(output, "images") else output.frames
        return latents

    def _refusal(self, got: str) -> RecipeError:
        from orthotune.image.families.registry import supported

        return RecipeError(
            f"a {self.pipeline_class}, which is not a supported family, tried as a plain flow", got=got,
            needed=f"one of {supported()}; or a transformer that is called with latents, a time and captions",
        )  # fmt: skip


def unknown_family(pipeline_class: str, parts: Mapping[str, Any]) -> type[PipelineFamily] | None:
    """The class with which a pipeline without a family is tried; None if it cannot be a flow with a transformer.

    Args:
        pipeline_class: name of the diffusers class.
        parts: component -> name of its class.

    Example:
        >>> unknown_family("OtherPipeline", {"unet": "UNet2DConditionModel"}) is None
        True
    """
    if "transformer" not in parts or not str(parts.get("scheduler", "")).startswith("FlowMatch"):
        return None
    return type(pipeline_class, (UnknownTransformer,), {"name": pipeline_class, "pipeline_class": pipeline_class})


def _tensors(found: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in found.items()
            if isinstance(value, Tensor) and name not in (_LATENTS, _TIME)}  # fmt: skip


def _sizes(found: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value.shape) if isinstance(value, Tensor) else repr(value)
            for name, value in found.items() if name != _LATENTS}  # fmt: skip
