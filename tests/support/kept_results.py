"""What the tests counted and measured, kept as files where the environment names a folder for it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

#: folder that results are kept in; none are without it
RESULTS = "ORTHOTUNE_RESULTS"


def keep_result(name: str, content: Any) -> None:
    """Write ``content`` as ``name``.json into the folder, where there is one."""
    if os.environ.get(RESULTS):
        home = Path(os.environ[RESULTS])
        home.mkdir(parents=True, exist_ok=True)
        (home / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
