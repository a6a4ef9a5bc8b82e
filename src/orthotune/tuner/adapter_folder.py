"""``adapter_config.json`` as PEFT reads it: what is no config of an adapter is named, with its file."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Any

from peft.utils import CONFIG_NAME

from orthotune.errors import AdapterFileError, nearest
from orthotune.files.json_file import read_json

NEEDED = "the JSON object of an adapter's settings, with its peft_type"
AGAIN = "Get adapter_config.json and the weights from the same place again"


def check_json(path: str | os.PathLike[str]) -> None:
    """Refuse a file that holds no JSON object.

    Raises:
        AdapterFileError: names the file, and where it breaks off.
    """
    read_json(path, named="the adapter's config", error=AdapterFileError, needed=NEEDED, do=AGAIN)


def check_type(path: str | os.PathLike[str], fields: dict[str, Any], known: Collection[Any]) -> None:
    """Refuse the fields of an adapter folder's config that do not say which method it is.

    Args:
        path: the file; one of another name is let through.
        fields: what it holds.
        known: the types that PEFT can read.

    Raises:
        AdapterFileError: names the file and what stands there.
    """
    if os.path.basename(path) != CONFIG_NAME:
        return
    kind = fields.get("peft_type")
    if isinstance(kind, str) and kind in known:
        return
    names = sorted(str(getattr(one, "value", one)) for one in known)
    near = nearest(kind.upper(), names, 1) if isinstance(kind, str) and kind else []
    raise AdapterFileError(
        f"the adapter's config {path}",
        got=f"peft_type={ascii(kind)[:80]}" if "peft_type" in fields else "no peft_type",
        needed="the type of the adapter's method, such as OFT, LORA or ORTHOTUNE",
        do=f"Did you mean {near[0]}?" if near else AGAIN,
    )
