"""What of the site is read from the source: public names, the command line, settings, presets, notebooks.

mkdocs calls the functions whose names begin with ``on_``. A page asks for a generated part with a comment such as
``<!-- generate: presets -->``. Nothing here imports torch: classes are read as source; only the command line is run.
"""

from __future__ import annotations

import ast
import posixpath
import re
import sys
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SRC = ROOT / "src"
MARKER = re.compile(r"^<!-- generate: (.+?) -->$", flags=re.MULTILINE)
LINK = re.compile(r"(\]\()([^)#:\s]+)((?:#[^)\s]*)?\))")
#: Pages of the site that show a file at the root of the repository.
SHOWN = {
    "ARCHITECTURE.md": "contributing/architecture.md",
    "CONTRIBUTING.md": "contributing/index.md",
    "CHANGELOG.md": "contributing/changelog.md",
    "README.md": "index.md",
}


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Fill in the generated parts of a page, and make links to files outside ``docs/`` links of the site."""
    markdown = MARKER.sub(lambda found: generated(found[1]), markdown)
    return LINK.sub(lambda found: _on_site(found, page.file.src_uri, config, files), markdown)


def generated(wanted: str) -> str:
    """The text for one comment: the name of a part, then its arguments.

    Example:
        >>> generated("include CHANGELOG.md").splitlines()[0]
        '# Changelog'
    """
    part, *arguments = wanted.split()
    return PARTS[part](*arguments)


def _on_site(link: re.Match[str], page: str, config: Any, files: Any) -> str:
    """The link itself, or for a file outside of ``docs/`` the page that shows it, or else a copy on the site."""
    from mkdocs.structure.files import File

    target = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link[2]))
    if target.startswith("docs/"):
        return link[0]
    if target not in SHOWN and not (ROOT / target).is_file():
        return link[0]  # mkdocs reports it
    # a page that is not part of the site is shown as text
    uri = SHOWN.get(target) or f"repository/{target}" + ".txt" * target.endswith(".md")
    if target not in SHOWN and files.get_file_from_path(uri) is None:
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / target)))
    return f"{link[1]}{posixpath.relpath(uri, posixpath.dirname(page) or '.')}{link[3]}"


def _include(name: str) -> str:
    """A file at the root of the repository; its links are made to start at ``docs/contributing``, where it is shown."""

    def moved(link: re.Match[str]) -> str:
        return f"{link[1]}{posixpath.relpath(link[2], 'docs/contributing')}{link[3]}"

    return LINK.sub(moved, (ROOT / name).read_text(encoding="utf-8"))


# Public names


def public_names() -> dict[str, str]:
    """Each name of ``orthotune.__all__`` with the module that has it, read from ``orthotune/__init__.py``.

    Example:
        >>> public_names()["OFTConfig"]
        'orthotune.tuner.config'
    """
    tree = ast.parse((SRC / "orthotune" / "__init__.py").read_text(encoding="utf-8"))
    found = {name: module for module, name in _imports(tree)}
    return {name: found[name] for name in sorted(_listed(tree), key=str.lower) if name in found}


def _imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.module, alias.name) for alias in node.names)


def _listed(tree: ast.Module) -> list[str]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            names: list[str] = ast.literal_eval(node.value)
            return names
    raise ValueError("orthotune/__init__.py has no __all__")


def _api() -> str:
    parts = []
    for name, module in public_names().items():
        ours = module.startswith("orthotune")
        text = f"::: {module}.{name}" if ours else f"The one of {module.upper()}, unchanged."
        parts.append(f"## {name} {{#{name}}}\n\n`from orthotune import {name}`\n\n{text}\n")
    return "\n".join(parts)


# The command line


def _command_line() -> str:
    sys.path.insert(0, str(SRC))
    import typer

    from orthotune.cli.main import app

    return "\n".join(_verbs("orthotune", typer.main.get_command(app)))


def _verbs(path: str, command: Any) -> Iterator[str]:
    inner = getattr(command, "commands", None)
    if inner:
        for name, verb in inner.items():
            if not verb.hidden:
                yield from _verbs(f"{path} {name}", verb)
        return
    text, _, examples = (command.help or "").partition("Example")
    yield f"## {path}\n\n{_paragraphs(text)}\n"
    lines = [line.strip() for line in examples.lstrip("s:").splitlines() if line.strip()]
    if lines:
        yield "```bash\n" + "\n".join(lines) + "\n```\n"
    rows = [_parameter(parameter) for parameter in command.params if parameter.name != "help"]
    if rows:
        yield "\n".join(["| argument | meaning |", "|---|---|", *rows]) + "\n"


def _parameter(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        name = parameter.metavar or parameter.name.upper()
    else:
        name = ", ".join([*parameter.opts, *parameter.secondary_opts])
    meaning = " ".join((parameter.help or "").split())
    kind = parameter.type_descriptor.annotation if hasattr(parameter, "type_descriptor") else None
    if isinstance(kind, type) and issubclass(kind, Enum):
        meaning += " One of " + ", ".join(f"`{choice.value}`" for choice in kind) + "."
    default = getattr(parameter.default, "value", parameter.default)
    if isinstance(default, str | int | float | Path) and not isinstance(default, bool) and "efault" not in meaning:
        meaning += f" Default: `{default}`."
    return f"| `{name}` | {'required. ' if parameter.required else ''}{_cell(meaning.strip())} |"


# Settings and presets


def _settings(place: str) -> str:
    """The fields of a settings class, ``module:Class``, as a table; those of its bases are in tables of their own."""
    sys.path.insert(0, str(SRC))
    from orthotune.recipes.setting_fields import own_fields

    rows = []
    for field in own_fields(place):
        kind = ", ".join(f"`{choice}`" for choice in field.choices) or f"`{field.kind.replace('Positive', 'int > 0')}`"
        limits = f", {field.limits}" if field.limits else ""
        default = "required, or from the preset" if field.default is None else f"`{field.default}`"
        rows.append(f"| `{field.name}` | {_cell(kind)}{limits} | {_cell(default)} | {_cell(field.meaning)} |")
    return "\n".join(["| setting | type | default | meaning |", "|---|---|---|---|", *rows])


def _presets() -> str:
    folder = SRC / "orthotune" / "recipes" / "presets"
    parts = []
    for path in sorted(folder.rglob("*.yaml"), key=lambda p: (len(p.relative_to(folder).parts), p)):
        first, _, rest = path.read_text(encoding="utf-8").partition("\n")
        name = path.relative_to(folder).with_suffix("").as_posix()
        parts.append(f"### {name}\n\n{first.lstrip('# ')}\n\n```yaml\n{rest.rstrip()}\n```\n")
    return "\n".join(parts)


# Words for Markdown


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _paragraphs(text: str) -> str:
    return "\n\n".join(" ".join(part.split()) for part in text.replace("\b", "").split("\n\n") if part.strip())


PARTS: dict[str, Callable[..., str]] = {
    "include": _include,
    "api": _api,
    "command-line": _command_line,
    "settings": _settings,
    "presets": _presets,
}
