"""The setting ``stop_when``, checked: rules that end a run of a language model at a measurement."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from orthotune.errors import nearest

#: Its keys, which are the fields of ``orthotune.text.early_stopping.StopRules``.
RULES = ("forgetting", "gain", "patience")
Fault = tuple[str, str, str]


def rule_faults(stop_when: Mapping[str, Any]) -> list[Fault]:
    """What is wrong with the rules.

    Args:
        stop_when: the setting.

    Returns:
        For each fault the dotted key, the contradiction, and the next step for the user.

    Example:
        >>> rule_faults({"patience": 0})[0][1]
        'stop_when.patience=0 is no number of measurements'
    """
    faults = [_unknown(key) if key not in RULES else _wrong(key, value) for key, value in stop_when.items()]
    return [fault for fault in faults if fault is not None]


def _unknown(key: str) -> Fault:
    close = nearest(key, RULES, count=1)
    do = f"Did you mean {close[0]!r}?" if close else f"Known keys: {', '.join(RULES)}"
    return f"stop_when.{key}", f"unknown key {key!r} of stop_when", do


def _wrong(rule: str, value: Any) -> Fault | None:
    key, given = f"stop_when.{rule}", f"stop_when.{rule}={value!r}"
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    if rule == "patience":
        counts = numeric and isinstance(value, int) and value >= 1
        do = "Write a whole number of measurements, at least 1"
        return None if counts else (key, f"{given} is no number of measurements", do)
    if not numeric or not math.isfinite(value):
        return key, f"{given} is no number of nats per token", f"Write for instance {key}=0.05"
    if value < 0 or (rule == "gain" and value == 0):
        return key, f"{given} would end every run at its first measurement", f"Write for instance {key}=0.05"
    return None
