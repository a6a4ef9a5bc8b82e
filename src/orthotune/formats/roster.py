"""The formats, in the order in which they are asked whether a path is theirs."""

from __future__ import annotations

from pathlib import Path

from orthotune.errors import AdapterFileError
from orthotune.formats import peft_oft
from orthotune.formats.adapter_state import AdapterState

FORMATS = (peft_oft,)


def read_adapter(path: str | Path) -> AdapterState:
    """The adapter at a path, whichever format it has.

    Raises:
        AdapterFileError: no format knows the path, or the one that does finds a fault.

    Example:
        >>> read_adapter("runs/sft/adapter").parameters  # doctest: +SKIP
        47616
    """
    path = Path(path)
    if not path.exists():
        raise AdapterFileError(f"There is no adapter at {path}", do="Check the path")
    for kind in FORMATS:
        if kind.detect(path):
            return kind.read(path)
    raise AdapterFileError(
        f"{path} is not an adapter", needed=f"a folder with {peft_oft.CONFIG_NAME}", do="Check the path"
    )
