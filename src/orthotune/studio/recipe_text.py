"""A recipe file as text, changed one setting at a time, so that its comments and its order stay."""

from __future__ import annotations

from typing import Any

import yaml

from orthotune.errors import OrthotuneError, RecipeError

#: Texts that are remembered for edits that overtake each other.
REMEMBERED = 40


def values_of(text: str) -> dict[str, Any]:
    """The settings in a recipe file.

    Args:
        text: of the file.

    Raises:
        RecipeError: not YAML, or not lines of ``key: value``; names the line.

    Example:
        >>> values_of("method: lora\\nsteps: 20\\n")
        {'method': 'lora', 'steps': 20}
    """
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as fault:
        mark = getattr(fault, "problem_mark", None)
        where = f"the recipe, line {mark.line + 1}" if mark else "the recipe"
        raise RecipeError(f"{where}: not YAML", got=str(getattr(fault, "problem", None) or fault)) from fault
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise RecipeError("the recipe", got=type(values).__name__, needed="lines of `key: value`")
    return {str(key): value for key, value in values.items()}


def with_value(text: str, key: str, value: Any) -> str:
    """The text with a setting replaced, added at the end, or removed.

    Args:
        text: of a recipe file.
        key: the setting.
        value: of JSON types; None removes the setting.

    Raises:
        RecipeError: the text is not YAML.

    Example:
        >>> print(with_value("# mine\\nsteps: 20\\nseed: 1\\n", "steps", 50), end="")
        # mine
        steps: 50
        seed: 1
        >>> with_value("steps: 20\\n", "steps", None)
        ''
    """
    values_of(text)
    line = "" if value is None else _line(key, value)
    tree = yaml.compose(text, Loader=yaml.SafeLoader)
    if isinstance(tree, yaml.MappingNode) and tree.flow_style:  # {steps: 20}: as lines from now on
        text = "".join(_line(name, inner) for name, inner in values_of(text).items())
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
    for name, node in tree.value if isinstance(tree, yaml.MappingNode) else ():
        if name.value == key:
            after = text[node.end_mark.index :]
            # The end of a block of lines is the beginning of the next key; that of a scalar is before its newline.
            rest = after.partition("\n")[2] if node.end_mark.column else after
            return text[: name.start_mark.index] + line + rest
    ending = "" if not text or text.endswith("\n") else "\n"
    return f"{text}{ending}{line}"


def edited(text: str, history: tuple[str, ...], key: str, field: str | None) -> tuple[str, tuple[str, ...]] | None:
    """The recipe file after an edit of one field, and the texts that fields have made so far; None without a change.

    The browser sends the text that it shows. While an earlier edit is on its way this is an older one, which the
    history tells: the newest one is edited then, so that no edit is lost.

    Args:
        text: as the browser shows it.
        history: of texts that fields have made, the newest one last.
        key: the setting.
        field: what was written into the field.

    Example:
        >>> text, history = edited("", (), "steps", "20")
        >>> edited("", history, "seed", "1")[0]
        'steps: 20\\nseed: 1\\n'
    """
    base = history[-1] if text in history else text
    try:
        values = values_of(base)
    except OrthotuneError:
        return None  # the check names the line; nothing is written over a text that cannot be read
    found = typed_or_none(field or "")
    value = (field or "").strip() or None if found is None else found  # what is no YAML is a text, as a prompt
    if value == values.get(key):
        return None
    made = with_value(base, key, value)
    return made, (*history, base, made)[-REMEMBERED:]


def typed(text: str) -> Any:
    """What a person wrote into a field, read as the command line reads ``KEY=VALUE``; None for an empty field.

    Args:
        text: as it was written.

    Raises:
        RecipeError: the text is not YAML.

    Example:
        >>> typed("3e-4"), typed("[a, b]"), typed(" ")
        ('3e-4', ['a', 'b'], None)
    """
    if not text.strip():
        return None
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as fault:
        raise RecipeError(
            f"value {text!r}", got=str(getattr(fault, "problem", None) or fault), needed="a YAML value"
        ) from fault


def written(value: Any) -> str:
    """A value as a person would write it into a field.

    Example:
        >>> written("a dog"), written(0.5), written(["a", "b"]), written(None), written(True)
        ('a dog', '0.5', '[a, b]', '', 'true')
    """
    if value is None:
        return ""
    if isinstance(value, str) and typed_or_none(value) == value:
        return value
    return (
        yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6).removesuffix("\n...\n").strip()
    )


def typed_or_none(text: str) -> Any:
    """As :func:`typed`; None for a text that is not YAML."""
    try:
        return typed(text)
    except RecipeError:
        return None


def _line(key: str, value: Any) -> str:
    return f"{written(key)}: {written(value)}\n"
