"""The tokenizer inside a GGUF file, from ``tokenizer.json``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orthotune.errors import AdapterFileError
from orthotune.files.json_file import read_json

#: Kinds of tokens, as GGUF numbers them.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
#: Expression that splits texts before merges -> name of the split in GGUF.
SPLITS = {
    _CONTRACTIONS + r"\p{N}{1,3}" + _REST: "llama-bpe",
    _CONTRACTIONS + r"\p{N}" + _REST: "qwen2",
    (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ): "tekken",
}
#: Model of a tokenizer in GGUF -> changes of a text before it is split that readers make themselves, or that leave
#: usual texts as they are (NFC: llama.cpp's converter leaves it out, too).
NORMALIZERS = {"gpt2": {"NFC"}, "llama": {"Prepend", "Replace"}}
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
#: What SentencePiece writes for a space.
SPACE = "\u2581"


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer as GGUF stores it.

    Attributes:
        model: ``gpt2`` for merges of bytes, ``llama`` for SentencePiece's.
        pre: the split of texts before merges.
        tokens: text of each token, by its number.
        types: kind of each token.
        scores: for ``llama``: the higher, the earlier a token is merged; empty otherwise.
        space_prefix: for ``llama``: whether a space is put before a text.
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float]
    space_prefix: bool = False


def not_direct(folder: Path) -> str | None:
    """Why the tokenizer of a model folder is not written here; None if it is.

    Args:
        folder: with ``tokenizer.json``.
    """
    if not (folder / "tokenizer.json").is_file():
        return "no tokenizer.json"
    content = read_json(folder / "tokenizer.json", error=AdapterFileError, do="Copy or download it again")
    model = content.get("model") or {}
    if model.get("type") != "BPE":
        return f"a tokenizer of the type {model.get('type')}"
    normalizers = {str(part.get("type")) for part in _parts(content.get("normalizer"), "normalizers")}
    if other := normalizers - NORMALIZERS["llama" if model.get("byte_fallback") else "gpt2"]:
        return f"a tokenizer that changes texts by {', '.join(sorted(other))}, which GGUF has no name for"
    if model.get("byte_fallback"):
        return None
    return None if _split(content) is not None else "a tokenizer that splits texts in a way without a name in GGUF"


def read_vocabulary(folder: Path, size: int) -> Vocabulary:
    """The tokenizer of a model folder.

    Args:
        folder: one that :func:`not_direct` does not refuse.
        size: rows of the embedding; numbers without a token become unused tokens.

    Returns:
        As many tokens as rows.

    Raises:
        AdapterFileError: ``tokenizer.json`` is damaged, or has more tokens than the model has rows.
    """
    content = read_json(folder / "tokenizer.json", error=AdapterFileError, do="Copy or download it again")
    model = content["model"]
    pieces = bool(model.get("byte_fallback"))
    known = {number: text for text, number in model["vocab"].items()}
    added = {one["id"]: one for one in content.get("added_tokens") or []}
    if (most := max([*known, *added])) >= size:
        raise AdapterFileError(
            f"{folder / 'tokenizer.json'}", got=f"a token of number {most}", needed=f"the {size} rows of the model",
            do="Take the tokenizer that belongs to the model",
        )  # fmt: skip
    tokens, types = [], []
    for number in range(size):
        text, kind = known.get(number), NORMAL
        if number in added:
            kind = CONTROL if added[number].get("special") else USER_DEFINED
            text = added[number]["content"]
            text = text.replace(SPACE, " ") if pieces and kind == USER_DEFINED else text
        elif text is None:
            text, kind = f"[PAD{number}]", UNUSED
        elif pieces and _BYTE.fullmatch(text):
            kind = BYTE
        if text == model.get("unk_token") and pieces:
            kind = UNKNOWN
        tokens.append(text)
        types.append(kind)
    if not pieces:
        return Vocabulary("gpt2", str(_split(content)), tokens, types, [])
    return Vocabulary("llama", "default", tokens, types, _scores(model, tokens), _space_prefix(content))


def _scores(model: dict[str, Any], tokens: list[str]) -> list[float]:
    """A token is merged the earlier, the earlier its first merge is; characters are not merged at all."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(model["merges"]):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        ranks.setdefault(left + right, rank)
    return [-float(ranks[token]) if token in ranks else -float(len(ranks)) for token in tokens]


def _space_prefix(content: dict[str, Any]) -> bool:
    parts = [*_parts(content.get("normalizer"), "normalizers"), *_parts(content.get("pre_tokenizer"), "pretokenizers")]
    return any(
        part.get("type") == "Prepend"
        or (part.get("type") == "Metaspace" and part.get("prepend_scheme", "always") != "never")
        for part in parts
    )


def _parts(found: dict[str, Any] | None, inside: str) -> list[dict[str, Any]]:
    if not found:
        return []
    return list(found.get(inside) or []) if found.get("type") == "Sequence" else [found]


def _split(content: dict[str, Any]) -> str | None:
    """The name in GGUF of how a byte-level tokenizer splits texts."""
    parts = _parts(content.get("pre_tokenizer"), "pretokenizers")
    kinds = [part.get("type") for part in parts]
    if not parts or kinds[-1] != "ByteLevel" or parts[-1].get("add_prefix_space"):
        return None
    own = bool(parts[-1].get("use_regex", True))
    if kinds == ["ByteLevel"] and own:
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and own and parts[0].get("individual_digits"):
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and not own:
        return SPLITS.get(str((parts[0].get("pattern") or {}).get("Regex")))
    return None
