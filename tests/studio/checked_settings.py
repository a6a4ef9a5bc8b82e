"""Settings checked through the calls of the page: ``make test-studio``, as the check imports torch."""

from __future__ import annotations

import io
import json
from typing import Any

from orthotune.studio import computing


def test_settings_are_checked_as_on_the_command_line() -> None:
    def answer(name: str, **arguments: Any) -> dict[str, Any]:
        results = io.BytesIO()
        computing.serve(io.BytesIO((json.dumps({"call": name, "arguments": arguments}) + "\n").encode()), results)
        found: dict[str, Any] = json.loads(results.getvalue())
        return found

    good = answer("check", recipe="sft", text="method: lora\nsteps: 50\n")
    assert good["result"]["steps"] == 50 and good["result"]["model"] == "text-world"
    bad = answer("check", recipe="sft", text="method: lora\neps: 1\n")["error"]
    assert bad.startswith("recipe, line 2: eps has no meaning for method=lora")
    assert "Did you mean 'learning_rate'" in answer("check", recipe="sft", text="lr: 1\n")["error"]
    assert "KeyError" in answer("no_such_call")["error"]
