"""The table of docs/concepts/transforms.md over transforms and kinds of layers, made from the rosters.

python -m tests.support.transform_table
"""

from __future__ import annotations

from tests.support.contract_cases import TRANSFORMS, Case
from tests.support.contract_layers import KINDS

#: names of columns; the roster has a variant of each transform, the one that can the least
COLUMNS = {"exact": "blocks"} | {
    name: str(config["transform"]) + (f" ({config['variant']})" if "variant" in config else "")
    for name, config in TRANSFORMS.items()
}


def pairs() -> list[Case]:
    """Every transform on every kind and side."""
    return [Case(kind, side, name) for kind in KINDS.values() for name in COLUMNS for side in kind.sides]


def table() -> list[str]:
    """The lines of the table: the sides on which ``tests/contracts/test_transform_kinds.py`` runs the contract."""
    ran: dict[tuple[str, str], list[str]] = {}
    for case in pairs():
        ran.setdefault((case.kind.name, case.options), []).append(case.side)
    lines = ["| layer | " + " | ".join(f"`{name}`" for name in COLUMNS.values()) + " |"]
    lines.append("|---" * (len(COLUMNS) + 1) + "|")
    for kind in KINDS:
        lines.append(f"| `{kind}` | " + " | ".join(", ".join(ran[kind, name]) for name in COLUMNS) + " |")
    return lines


if __name__ == "__main__":
    print("\n".join(table()))
