"""The plug-in that vLLM loads by its entry point group ``vllm.general_plugins``, in each of its processes."""

from __future__ import annotations

import importlib
import logging
import re

from orthotune.errors import ConfigError

#: First two numbers of vLLM's version -> the module that knows its classes. A version is here when it is tested.
TESTED = {(0, 32): "orthotune.serving.vllm_0_32"}

_logger = logging.getLogger("vllm.plugins.orthotune")


def module_for(version: str) -> str:
    """The module that registers rotations in a version of vLLM.

    Args:
        version: vLLM's.

    Raises:
        ConfigError: the version is not tested.

    Example:
        >>> module_for("0.32.1+cpu")
        'orthotune.serving.vllm_0_32'
    """
    numbers = re.match(r"(\d+)\.(\d+)", version)
    found = TESTED.get((int(numbers[1]), int(numbers[2]))) if numbers else None
    if found is None:
        tested = ", ".join(f"{major}.{minor}" for major, minor in TESTED)
        raise ConfigError(
            f"orthotune's plug-in in vLLM {version}", needed=f"a version that it is tested with: {tested}",
            do="Install one of them, or serve merged models: orthotune merge",
        )  # fmt: skip
    return found


def register() -> None:
    """Make vLLM serve OFT adapters wherever it takes LoRA adapters; calling it again changes nothing.

    In a version of vLLM that is not tested, nothing is registered and the reason is logged as an error: LoRA and merged
    models are served as without the plug-in.
    """
    import vllm

    try:
        name = module_for(vllm.__version__)
    except ConfigError as error:
        _logger.error("OFT adapters are not served: %s", error)
        return
    importlib.import_module(name).register()
