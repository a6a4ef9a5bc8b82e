"""Values in the JSON files that a saved model or pipeline describes itself with."""

from __future__ import annotations

import json
from pathlib import Path


def change_config(path: Path, **values: str) -> None:
    """Set ``values`` in the JSON file ``path`` and leave the others as they are."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values, indent=2, sort_keys=True) + "\n")
