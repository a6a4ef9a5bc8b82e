"""The settings of a recipe as its source describes them: name, type, default, meaning. Nothing is imported for it.

Help has to be instant, and a settings class can only be imported with pydantic and, for most recipes, with torch.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

#: The folder that holds the package.
SOURCE = Path(__file__).resolve().parents[2]
_SIGNS = {"gt=": "> ", "ge=": "≥ ", "lt=": "< ", "le=": "≤ ", "min_length=": "at least ", "allow_inf_nan=False": ""}


@dataclass(frozen=True)
class SettingField:
    """One setting of a class.

    Attributes:
        name: the key.
        choices: the values that are allowed, where the type lists them; otherwise empty.
        kind: the type, as the source writes it.
        limits: of a number, as ``> 0``.
        default: as the source writes it; None for a setting that must be given.
        meaning: its description, or nothing.
        owner: the class that defines it.
    """

    name: str
    choices: tuple[str, ...]
    kind: str
    limits: str
    default: str | None
    meaning: str
    owner: str

    @property
    def type_text(self) -> str:
        """Type and limits in words."""
        kind = ", ".join(self.choices) or self.kind.replace("Positive", "int > 0").replace(" | None", "")
        return f"{kind} {self.limits}".strip() if not self.choices else kind


def own_fields(place: str) -> list[SettingField]:
    """The fields that a class itself defines, in their order.

    Args:
        place: ``module:Class``.

    Raises:
        KeyError: the module has no such class.

    Example:
        >>> [field.name for field in own_fields("orthotune.recipes.settings:SFTSettings")][:2]
        ['data', 'data_format']
    """
    module, _, name = place.partition(":")
    found = (_field(node, module, name) for node in _class(module, name).body if isinstance(node, ast.AnnAssign))
    return [field for field in found if field is not None]


def all_fields(place: str) -> list[SettingField]:
    """The fields of a class and of its bases; a field that is defined again is the one of the derived class.

    Args:
        place: ``module:Class``.

    Example:
        >>> "learning_rate" in [field.name for field in all_fields("orthotune.recipes.settings:SFTSettings")]
        True
    """
    found: dict[str, SettingField] = {}
    for base in _bases(place):
        found |= {field.name: field for field in all_fields(base)}
    return list((found | {field.name: field for field in own_fields(place)}).values())


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse((SOURCE / (module.replace(".", "/") + ".py")).read_text(encoding="utf-8"))


def _class(module: str, name: str) -> ast.ClassDef:
    for node in _tree(module).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return node
    raise KeyError(f"{module}:{name}")


def _bases(place: str) -> list[str]:
    """The bases of a class that the package defines, as ``module:Class``."""
    module, _, name = place.partition(":")
    imported = {
        alias.asname or alias.name: f"{node.module}:{alias.name}"
        for node in _tree(module).body
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("orthotune.")
        for alias in node.names
    }
    here = {node.name: f"{module}:{node.name}" for node in _tree(module).body if isinstance(node, ast.ClassDef)}
    names = [ast.unparse(base) for base in _class(module, name).bases]
    return [(imported | here)[base] for base in names if base in imported | here]


@cache
def _constant(module: str, name: str) -> str | None:
    """The literal, or the choices, that a name of a module stands for; it may be imported from another module here."""
    for node in _tree(module).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == name:
            shown = ast.unparse(node.value)
            return shown if isinstance(node.value, ast.Constant) or shown.startswith("Literal[") else None
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("orthotune."):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    there = SOURCE / (str(node.module).replace(".", "/") + ".py")
                    return _constant(str(node.module), alias.name) if there.is_file() else None
    return None


def _field(node: ast.AnnAssign, module: str, owner: str) -> SettingField | None:
    kind, name = ast.unparse(node.annotation), ast.unparse(node.target)
    if kind.startswith("ClassVar") or name.startswith("_"):
        return None
    call = node.value if isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "Field" else None
    inner = re.fullmatch(r"Annotated\[(.+), Field\((.*)\)\]", kind)
    default: str | None = None
    meaning, limits = "", inner[2] if inner else ""
    if call is not None:
        given = {str(word.arg): word.value for word in call.keywords}
        default = _known(ast.unparse(call.args[0]), module) if call.args else None
        meaning = _text(given.pop("description")) if "description" in given else ""
        limits = ", ".join([limits] * bool(limits) + [f"{key}={ast.unparse(value)}" for key, value in given.items()])
    elif node.value is not None:
        default = _known(ast.unparse(node.value), module)
    kind = _known(inner[1] if inner else kind, module)
    for sign, shown in _SIGNS.items():
        limits = limits.replace(sign, shown)
    listed = re.fullmatch(r"Literal\[(.+)\](?: \| None)?", kind)
    choices = tuple(str(choice) for choice in ast.literal_eval(f"[{listed[1]}]")) if listed else ()
    return SettingField(name, choices, kind, limits.strip(", "), default, meaning, owner)


def _known(text: str, module: str) -> str:
    """``text`` with the literals in the place of the names that stand for them."""
    return re.sub(r"\b[A-Za-z_]\w*\b", lambda found: _constant(module, found[0]) or found[0], text)


def _text(node: ast.expr) -> str:
    """A literal; of a formatted one what stands in it, without a list that is made when the program runs."""
    if isinstance(node, ast.JoinedStr):
        parts = [str(part.value) for part in node.values if isinstance(part, ast.Constant)]
        return "".join(parts).rstrip(" :.") + "."
    return str(ast.literal_eval(node))
