"""The message and the exit status of a failure."""

from __future__ import annotations

import errno
import re
import sys

#: The extra that each optional package belongs to, so that the message can name the command that installs it.
EXTRAS = {
    "trl": "text",
    "datasets": "text",
    "matplotlib": "text",
    "jinja2": "text",
    "diffusers": "image",
    "PIL": "image",
    "bitsandbytes": "quant-bnb",
    "gptqmodel": "quant-gptq",
    "optimum-quanto": "quant-quanto",
    "optimum.quanto": "quant-quanto",
    "optimum": "quant-gptq",
    "aqlm": "quant-aqlm",
    "hqq": "quant-hqq",
    "torchao": "quant-torchao",
    "triton": "triton",
    "cv2": "metrics",
    "torchmetrics": "metrics",
    "torchvision": "perceptual",
    "torch_fidelity": "perceptual",
    "face_alignment": "landmarks",
    "skimage": "toy",
    "gradio": "studio",
    "fastapi": "studio",
    "uvicorn": "studio",
}

BAD_INPUT, UNEXPECTED, INTERRUPTED = 2, 1, 130


def explain(error: BaseException) -> tuple[str, int]:
    """The message and the exit status for ``error``: 2 for an error that the user can correct, 1 for any other.

    Example:
        >>> explain(KeyboardInterrupt())
        ('Stopped.', 130)
    """
    if isinstance(error, KeyboardInterrupt):
        # A shell reads 128 and the signal's number; Ctrl-C is signal 2.
        return str(error) or "Stopped.", 128 + getattr(error, "number", INTERRUPTED - 128)
    if isinstance(error, OSError):
        return _explain_os(error), BAD_INPUT
    if isinstance(error, ModuleNotFoundError):
        package = next((name for name in EXTRAS if f"{error.name}.".startswith(f"{name}.")), None)
        if package is not None:
            return f"This needs {package}. {_install(package)}", BAD_INPUT
    elif isinstance(error, ImportError) and error.name is None:
        # Raised by a library with a message of its own about a missing package; a plain failed import has a name.
        mentioned = re.findall(r"[\w.-]+", str(error).lower())
        package = next((name for name in EXTRAS if name in mentioned), None)
        return str(error) + (f"\n{_install(package)}" if package else ""), BAD_INPUT
    # Looked up, not imported: an OrthotuneError can only exist once its module is imported.
    errors = sys.modules.get("orthotune.errors")
    if errors is not None and isinstance(error, errors.OrthotuneError):
        return str(error), BAD_INPUT
    return f"{type(error).__name__}: {error}\nRun the same command with --debug to see where.", UNEXPECTED


def _install(package: str) -> str:
    return f"Install it with: pip install 'orthotune[{EXTRAS[package]}]'"


def _explain_os(error: OSError) -> str:
    path = str(error.filename2 or error.filename or "") or "a file"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"The disk is full: {path} could not be written. Free some space or choose another folder."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return (
            f"{path} may not be written or read ({error.strerror}). Choose another folder or correct the permissions."
        )
    if error.errno == errno.ENOENT:
        return f"{path} does not exist. Check the path."
    # Libraries raise OSError with their own message (a model that is not on the hub, no network).
    return str(error)
