"""What mkdocstrings needs to show the examples in docstrings as code: its reader knows the plural heading alone."""

from __future__ import annotations

from typing import Any

import griffe


class Examples(griffe.Extension):
    """Read ``Example:`` as ``Examples:``."""

    def on_instance(self, *, obj: Any, **_: Any) -> None:
        """Called by griffe for every module, class, function and attribute."""
        if obj.docstring is not None:
            lines = obj.docstring.value.split("\n")
            obj.docstring.value = "\n".join("Examples:" if line.strip() == "Example:" else line for line in lines)
