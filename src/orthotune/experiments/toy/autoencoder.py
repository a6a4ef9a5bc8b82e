"""A convolutional autoencoder whose convolutions can pass on one part of their outputs: the angle or the length."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, relu

Part = Literal["full", "angle", "magnitude"]
#: Channels of the image, between the two convolutions, and of the code.
CHANNELS = (3, 32, 32)
KERNEL, STRIDE, PADDING = 4, 2, 1


class PartialConv2d(nn.Module):
    """A convolution without bias, normalised, that computes all or one part of ``<w, x> = ‖w‖ ‖x‖ cos(w, x)``.

    ``x`` is the window under the kernel, ``w`` the kernel of a channel. Trained with ``part = "full"``.

    Shapes: ``(batch, channels in, height, width)`` -> ``(batch, channels out, height / 2, width / 2)``.

    Source: OFT, arXiv 2306.07280, the toy experiment that motivates it.

    Example:
        >>> layer = PartialConv2d(3, 5)
        >>> x = torch.randn(2, 3, 8, 8)
        >>> full, angle, length = (layer.response(x, part) for part in ("full", "angle", "magnitude"))
        >>> bool(torch.allclose(full, angle * length, atol=1e-5)), angle.abs().max() <= 1
        (True, tensor(True))
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, KERNEL, STRIDE, PADDING, bias=False)
        self.normalisation = nn.BatchNorm2d(outputs)
        self.part: Part = "full"

    def response(self, x: Tensor, part: Part) -> Tensor:
        """One part of the convolution's output before normalisation; angles as cosines, 0 where ``x`` is 0.

        Args:
            x: ``(batch, channels in, height, width)``.
            part: ``full``, ``angle`` or ``magnitude``.
        """
        full = self.convolution(x)
        if part == "full":
            return full
        weight = self.convolution.weight
        window = conv2d(x.square(), torch.ones_like(weight[:1]), stride=STRIDE, padding=PADDING).sqrt()
        magnitude = window * weight.flatten(1).norm(dim=1)[:, None, None]
        tiny = torch.finfo(x.dtype).tiny
        return magnitude if part == "magnitude" else (full / magnitude.clamp_min(tiny)).clamp(-1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.normalisation(self.response(x, self.part))


class Autoencoder(nn.Module):
    """Two convolutions to a code of two thirds of the image's size, and two transposed ones back.

    Shapes: ``(batch, 3, height, width)`` -> the same; height and width are multiples of 4.

    Example:
        >>> Autoencoder()(torch.zeros(1, 3, 8, 8)).shape
        torch.Size([1, 3, 8, 8])
    """

    def __init__(self) -> None:
        super().__init__()
        image, middle, code = CHANNELS
        self.first, self.second = PartialConv2d(image, middle), PartialConv2d(middle, code)
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(code, middle, KERNEL, STRIDE, PADDING),
            nn.BatchNorm2d(middle),
            nn.ReLU(),
            nn.ConvTranspose2d(middle, image, KERNEL, STRIDE, PADDING),
        )

    def forward(self, x: Tensor) -> Tensor:
        image: Tensor = self.decoder(self.second(relu(self.first(x))))
        return image

    @torch.no_grad()
    def pass_on(self, part: Part, layers: tuple[int, ...], images: Tensor, batch: int = 200) -> None:
        """From now on ``layers`` of the encoder pass on ``part`` only, the others everything.

        Each normalisation, first to last, computes its statistics anew on all of ``images``, so that no part suffers
        from its scale alone. The statistics are exact: neither the order of the images nor ``batch`` matters.

        Args:
            part: ``full``, ``angle`` or ``magnitude``.
            layers: numbers of the encoder's convolutions, 0 and 1.
            images: ``(count, 3, height, width)``.
            batch: images that are computed at a time.
        """
        self.eval()
        for index, layer in enumerate((self.first, self.second)):
            layer.part = part if index in layers else "full"
            count, total, squares = 0, torch.zeros(()).double(), torch.zeros(()).double()
            for some in images.split(batch):
                seen = (
                    layer.response(relu(self.first(some)) if index else some, layer.part)
                    .double()
                    .transpose(0, 1)
                    .flatten(1)
                )
                count += seen.shape[1]
                total, squares = total + seen.sum(1), squares + seen.square().sum(1)
            mean = total / count
            norm = layer.normalisation
            assert norm.running_mean is not None and norm.running_var is not None
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(squares / count - mean.square())
