"""Variants in a comparison: contenders by a name of their own, each a method with settings that others have not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from orthotune.experiments import grid
from orthotune.recipes.method_settings import METHODS, MethodSettings, SettingError

#: name -> settings of its runs without rate, seed and output, and the learning rates where they were said
Contenders = dict[str, tuple[dict[str, Any], list[float] | None]]


def check(variants: Mapping[str, Mapping[str, Any]], taken: Iterable[str]) -> None:
    """Refuse a variant that a comparison cannot run; ``taken`` are the names of its methods.

    Raises:
        SettingError: which, and why.
    """
    for name, said in variants.items():
        if name in taken or "/" in name or not name:
            do = "Call it by a name that is no method's, without a slash"
            raise SettingError("variants", f"a variant called {name!r}", do)
        if varied := sorted(set(said) & (set(grid.OURS) - {"method", "learning_rate"})):
            raise SettingError("variants", f"variants.{name}.{varied[0]}", "Leave it out: the comparison sets it")
        if "learning_rate" in said or not _are_rates(said.get("learning_rates", [1.0])):
            raise SettingError(
                "variants", f"the learning rate of variants.{name}", "Write learning_rates=[...], numbers above 0"
            )
        if said.get("method", "oft") not in METHODS:
            unknown = f"variants.{name}.method={said['method']!r}"
            raise SettingError("variants", unknown, f"Choose one of {', '.join(METHODS)}")


def check_against(against: str, known: Iterable[str], said: bool) -> None:
    """Refuse to set the others against a contender that is not there; ``said``: whether somebody named it."""
    known = list(known)
    if said and against not in known:
        raise SettingError("against", f"against={against}", f"Choose one of {', '.join(known)}")


def contenders(
    variants: Mapping[str, Mapping[str, Any]], every: Mapping[str, Any], rates: Mapping[Any, list[float]],
    runs: type[MethodSettings],
) -> Contenders:  # fmt: skip
    """The variants as contenders.

    Args:
        variants: what was said of each.
        every: settings of every run.
        rates: learning rates by method, of those that do not say theirs.
        runs: the kind of the runs' settings.
    """
    found: Contenders = {}
    for name, said in variants.items():
        own = {key: value for key, value in said.items() if key not in ("method", "learning_rates")}
        method = said.get("method", "oft")
        # Its own words come last: a variant may say what has no meaning for other methods.
        base = grid.settings_of(method, {**every, **own}, runs)
        found[name] = ({**base, **own}, said.get("learning_rates") or rates.get(method))
    return found


def _are_rates(said: Any) -> bool:
    return isinstance(said, list) and bool(said) and all(isinstance(one, (int, float)) and one > 0 for one in said)
