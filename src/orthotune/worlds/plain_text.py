"""The text of manual pages and of HTML pages, without their markup."""

from __future__ import annotations

import html.parser
import re

#: Requests whose arguments are text.
_TEXT = {"B", "I", "BR", "RB", "BI", "IB", "IR", "RI", "SM", "SB", "R", "IP", "SY", "OP", "UR", "MT", "Sh", "Nm"}
_TITLES = {"SH", "SS"}
_GAPS = {"PP", "P", "LP", "TP", "IP", "HP", "TQ", "sp"}
_NAMED = {
    "aq": "'", "co": "©", "rg": "®", "bu": "•", "em": "—", "en": "–", "lq": "“", "rq": "”", "dq": '"', "cq": "’",
    "oq": "‘", "ga": "`", "ha": "^", "ti": "~", "rs": "\\", "Fo": "«", "Fc": "»", "mu": "×", "->": "→", "<-": "←",
    ">=": "≥", "<=": "≤", "!=": "≠", "+-": "±", "mi": "-", "sq": "□", "la": "<", "ra": ">", "lB": "[", "rB": "]",
    "or": "|", "at": "@", "sh": "#", "Do": "$", "de": "°", "ss": "ß", ":a": "ä", ":o": "ö", ":u": "ü", "'e": "é",
}  # fmt: skip
_ESCAPE = re.compile(
    r"\\(?:f(?:\(..|\[[^\]]*\]|.)|s(?:[+-]?\d+)|\*(?:\(..|\[[^\]]*\]|.)|\((?P<two>..)|\[(?P<long>[^\]]*)\]|(?P<one>.))"
)
_ONE = {"-": "-", " ": " ", "e": "\\", "'": "'", "`": "`", "~": " ", "0": " ", "t": "\t", ".": "."}
_ARGUMENT = re.compile(r'"((?:[^"]|"")*)"|(\S+)')


def text_of_roff(source: str) -> str:
    """The text of a manual page: titles, paragraphs and lists, without fonts and layout.

    Args:
        source: a page in the ``man`` macros of roff.

    Returns:
        Lines of text; an empty line between paragraphs.

    Example:
        >>> text_of_roff('.SH NOM\\nls \\\\- afficher le \\\\fIcontenu\\\\fP\\n.PP\\nVoir aussi\\n.BR cat (1).')
        'NOM\\nls - afficher le contenu\\n\\nVoir aussi cat(1).'
    """
    lines: list[list[str]] = [[]]
    for line in source.splitlines():
        request = re.match(r"[.'][ \t]*([A-Za-z]{1,3})\b[ \t]*(.*)", line)
        if line.startswith((".", "'")) and request is None:  # comments and empty requests
            continue
        if request is None:
            if line.strip():
                lines[-1].append(_plain(line))
            else:
                lines.append([])
            continue
        name, rest = request.groups()
        words = [(quoted or bare).replace('""', '"') for quoted, bare in _ARGUMENT.findall(rest)]
        if name in _TITLES:
            lines += [[_plain(" ".join(words)) + "\n"], []] if words else [[]]
            continue
        if name in _GAPS:
            lines.append([])
        if name == "br":
            lines[-1].append("\n")
        elif name in _TEXT and words:
            joined = "" if len(name) == 2 and name not in ("SM", "SB", "IP", "UR", "MT", "Nm", "SY", "OP") else " "
            lines[-1].append(_plain(joined.join(words[:1] if name == "IP" else words)))
    paragraphs = [re.sub(r"[ \t]*\n[ \t]*", "\n", " ".join(parts)).strip(" ") for parts in lines if parts]
    return re.sub(r"\n{3,}", "\n\n", "\n\n".join(paragraphs).replace("\n\n\n", "\n")).strip()


def _plain(text: str) -> str:
    def character(found: re.Match[str]) -> str:
        named = found["two"] or found["long"]
        if named:
            return _NAMED.get(named, "")
        return _ONE.get(found["one"] or "", "")

    return _ESCAPE.sub(character, text)


class _Text(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.skipped = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "style", "head", "nav"):
            self.skipped += 1
        elif tag in ("p", "li", "pre", "h1", "h2", "h3", "h4", "h5", "dt", "dd", "div", "tr"):
            self.parts.append("\n\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style", "head", "nav"):
            self.skipped = max(0, self.skipped - 1)

    def handle_data(self, data: str) -> None:
        if not self.skipped:
            self.parts.append(data)


def text_of_html(source: str) -> str:
    """The text of an HTML page, with an empty line between paragraphs.

    Args:
        source: the page.

    Returns:
        The text without scripts, styles and the head.

    Example:
        >>> text_of_html("<head><title>x</title></head><p>One <b>bold</b> word.</p><p>Two.</p>")
        'One bold word.\\n\\nTwo.'
    """
    reader = _Text()
    reader.feed(source)
    paragraphs = (re.sub(r"\s+", " ", part).strip() for part in "".join(reader.parts).split("\n\n"))
    return "\n\n".join(part for part in paragraphs if part)
