"""A dtype that the processor multiplies far slower than float32, measured when a run starts."""

from __future__ import annotations

import time

import torch

SIZE, REPETITIONS = 192, 3
#: Times slower than float32 from which a run says so: below, half the memory may be worth the time.
WORTH_A_NOTE = 3.0


def slow_dtype_note(dtype: torch.dtype, device: str, setting: str, remedy: str) -> str | None:
    """A sentence for the notes of a run that would spend most of its time on slow products; None otherwise.

    A processor without instructions for bfloat16 multiplies it number by number, up to seventy times slower than
    float32, and nothing else says so.

    Args:
        dtype: that the model computes in.
        device: type of the device of the run, as ``cpu`` or ``cuda``; only a CPU is measured.
        setting: that chose the dtype, as the user writes it.
        remedy: the setting that chooses float32, as the user writes it.

    Returns:
        The sentence, or None for float32, for another device, and where the dtype is not slow.

    Example:
        >>> slow_dtype_note(torch.float32, "cpu", "dtype=float32", "dtype=float32") is None
        True
    """
    if device != "cpu" or dtype == torch.float32:
        return None
    return sentence(times_slower(dtype), setting, remedy)


def times_slower(dtype: torch.dtype) -> float:
    """How many times as long as in float32 a product of two matrices takes in a dtype, on this CPU, now.

    Args:
        dtype: of the matrices, 192 x 192 each: a few milliseconds altogether, a tenth of a second where it is slow.
    """
    return _seconds(dtype) / _seconds(torch.float32)


def sentence(ratio: float, setting: str, remedy: str) -> str | None:
    """The sentence about a measured ratio; None for one that is not worth a note.

    Args:
        ratio: the product's time in the dtype, in float32's times.
        setting: that chose the dtype, as the user writes it.
        remedy: the setting that chooses float32, as the user writes it.

    Example:
        >>> sentence(70.2, "dtype=bfloat16", "dtype=float32")
        'dtype=bfloat16: this CPU takes about 70 times as long for a product as in float32; use dtype=float32, unless the memory is needed.'
        >>> sentence(1.4, "dtype=bfloat16", "dtype=float32") is None
        True
    """  # noqa: E501 - the sentence is one line
    if ratio < WORTH_A_NOTE:
        return None
    return (
        f"{setting}: this CPU takes about {ratio:.0f} times as long for a product as in float32; use {remedy}, unless "
        "the memory is needed."
    )


def _seconds(dtype: torch.dtype) -> float:
    left, right = (torch.ones(SIZE, SIZE, dtype=dtype) for _ in range(2))
    left @ right  # the first product prepares the library
    times = []
    for _ in range(REPETITIONS):
        began = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - began)
    return max(min(times), 1e-9)
