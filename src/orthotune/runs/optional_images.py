"""Images and pages beside the results of a run, which a missing library for them must not fail."""

from __future__ import annotations

from collections.abc import Callable

#: Library -> the extra that installs it.
LIBRARIES = {"matplotlib": "text", "jinja2": "text", "PIL": "image"}


def not_written(write: Callable[[], object], name: str) -> str | None:
    """Write, or say which library is missing for it.

    Args:
        write: writes the image or page, and imports its library when it is called.
        name: of what is written.

    Returns:
        None when it is there, or a sentence for the notes of the run.

    Raises:
        ModuleNotFoundError: what is missing is not a library for images or pages.

    Example:
        >>> def write():
        ...     raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib.figure")
        >>> not_written(write, "curve.png")
        "curve.png was not written: matplotlib is not installed (pip install 'orthotune[text]')."
    """
    try:
        write()
    except ModuleNotFoundError as fault:
        library = (fault.name or "").partition(".")[0]
        if library not in LIBRARIES:
            raise
        return f"{name} was not written: {library} is not installed (pip install 'orthotune[{LIBRARIES[library]}]')."
    return None
