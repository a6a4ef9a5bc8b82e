"""Detectors of the 68 landmarks of a face: a library, or a function of the user."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from orthotune.errors import ConfigError

#: From ``(height, width, 3)`` uint8 to ``(68, 2)`` points (x, y) in pixels, or None where there is no face.
Detector = Callable[[Any], Any]
FACE_ALIGNMENT = "face-alignment"


def detector(name: str, device: str = "cpu") -> Detector:
    """The detector of a given name.

    Args:
        name: ``face-alignment``, or ``package.module:function`` of a :data:`Detector`.
        device: where the network of face-alignment runs.

    Raises:
        ConfigError: no such function.
        ModuleNotFoundError: face-alignment is not installed.

    Example:
        >>> detector("math:dist") is __import__("math").dist
        True
    """
    if name == FACE_ALIGNMENT:
        return _face_alignment(device)
    module, _, function = name.partition(":")
    try:
        found: Any = getattr(importlib.import_module(module), function) if function else None
    except (ImportError, AttributeError, ValueError) as fault:
        raise ConfigError(f"detector {name}", got=str(fault), needed="package.module:function") from fault
    if not callable(found):
        raise ConfigError(f"detector {name}", needed=f"{FACE_ALIGNMENT}, or package.module:function of your own")
    return found


def _face_alignment(device: str) -> Detector:
    import face_alignment

    finder = face_alignment.FaceAlignment(face_alignment.LandmarksType.TWO_D, device=device)

    def points(image: Any) -> Any:
        faces = finder.get_landmarks_from_image(image)
        return faces[0] if faces else None

    return points
