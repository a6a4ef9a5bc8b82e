"""Recordings of a table: read from WAV files by the standard library, from other files by soundfile, or from arrays."""

from __future__ import annotations

import io
import wave
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from orthotune.errors import DataError

#: Bytes of a sample of a WAV file -> type of the samples.
WIDTHS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


@dataclass(frozen=True)
class Recording:
    """A recording: float32 samples [samples] of one channel, of -1..1, and how many of them a second has."""

    samples: Tensor = field(repr=False)
    rate: int

    @property
    def seconds(self) -> float:
        """The length in seconds."""
        return len(self.samples) / self.rate


def read_recording(value: Any, place: str, folder: Path, rate: int | None = None) -> Recording:
    """The recording in a cell of a table.

    Args:
        value: a path below ``folder``, or a mapping with ``array`` and ``sampling_rate``, or with ``bytes`` or
            ``path`` as data sets of the hub have, or samples as a list.
        place: of the row, for messages.
        folder: of the table.
        rate: samples a second of a list.

    Raises:
        DataError: no file, a file that is no recording, or one that is empty or not finite.

    Example:
        >>> read_recording([0.0, 0.5], "row 0", Path(), rate=16000).seconds
        0.000125
    """
    if isinstance(value, dict) and value.get("array") is not None:
        value, rate = value["array"], value.get("sampling_rate", rate)
    elif isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str | bytes):
        found = _read_file(value if isinstance(value, bytes) else folder / value, place)
    else:
        found = _of_samples(value, place, rate)
    if not len(found.samples):
        raise DataError(f"{place}: column 'audio'", got="a recording without samples", do="Remove the row")
    if not found.samples.isfinite().all():
        raise DataError(f"{place}: column 'audio'", got="samples that are not finite", do="Repair or remove the row")
    return found


def _of_samples(value: Any, place: str, rate: int | None) -> Recording:
    try:
        samples = torch.as_tensor(value, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError) as fault:
        needed = "a path, or samples with their sampling_rate"
        raise DataError(f"{place}: column 'audio'", got=type(value).__name__, needed=needed) from fault
    if samples.ndim != 1 or rate is None:
        got = f"samples of shape {list(samples.shape)}" + ("" if rate else " without a sampling_rate")
        raise DataError(f"{place}: column 'audio'", got=got, needed="one channel and its sampling_rate")
    return Recording(samples, int(rate))


def _read_file(origin: Path | bytes, place: str) -> Recording:
    named = place if isinstance(origin, bytes) else f"{place}: {origin}"
    if isinstance(origin, Path) and not origin.is_file():
        raise DataError(named, got="no such file", do="Write paths relative to the folder of the table")
    data = origin if isinstance(origin, bytes) else origin.read_bytes()
    try:
        return _wav(data)
    except (wave.Error, EOFError, KeyError) as fault:
        if find_spec("soundfile") is None:
            raise DataError(
                named, got=f"no WAV file with whole numbers as samples ({fault})", needed="such a file, or soundfile",
                do='Run pip install "orthotune[speech]", which reads FLAC, OGG and MP3',
            ) from fault  # fmt: skip
    import soundfile

    try:
        samples, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    except (RuntimeError, OSError) as fault:
        raise DataError(named, got=f"no recording that can be read ({fault})", do="Repair or remove it") from fault
    return Recording(torch.from_numpy(samples).mean(-1), int(rate))


def _wav(data: bytes) -> Recording:
    with wave.open(io.BytesIO(data)) as file:
        kind, channels, rate = WIDTHS[file.getsampwidth()], file.getnchannels(), file.getframerate()
        content = bytearray(file.readframes(file.getnframes()))
    if not content:
        return Recording(torch.zeros(0), rate)
    values = torch.frombuffer(content, dtype=kind).reshape(-1, channels).float()
    values = (values - 128) / 128 if kind == torch.uint8 else values / float(torch.iinfo(kind).max + 1)
    return Recording(values.mean(-1), rate)
