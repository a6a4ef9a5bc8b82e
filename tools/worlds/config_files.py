"""Change values in the JSON config files of a saved model or pipeline."""

from __future__ import annotations

from pathlib import Path

from orthotune.files.json_file import read_json, write_json


def change_config(path: Path, **values: str) -> None:
    """Set ``values`` in the JSON file ``path`` and keep all others."""
    write_json(path, read_json(path) | values, sort_keys=True, nan_as_null=False)
