"""Checks of an adapter before a model is changed: its name, its regular expressions, and its sizes.

``re`` backtracks: ``(a+)+$`` takes twice as long for each further letter and cannot be interrupted. PEFT matches the
patterns of ``adapter_config.json`` against every module's name, so a file could block a process for ever. A pattern
that is not obviously harmless is therefore tried first in a subprocess with a time limit.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from orthotune.errors import AdapterFileError, ConfigError
from orthotune.layers.base import OFTLayer
from orthotune.layers.beside_adapters import beside_adapters

#: A config may ask for more parameters than its file has (a later error reports wrong shapes, or it is used for a
#: larger model), but not for a multiple of them that is also a large share of the layers.
SLACK, ALWAYS, SHARE = 4, 1 << 20, 8

#: A pattern of a real adapter takes milliseconds on all names of a model.
SECONDS = 10.0
LONGEST = 1 << 20

_TRY = """
import json, re, sys
how, pattern, names = json.load(sys.stdin)
for name in names:
    getattr(re, how)(pattern, name)
"""


def admit_adapter(config: Any, adapter_name: str, model: nn.Module) -> None:
    """Check an adapter's name, which becomes the name of a folder when it is saved, and its config's patterns.

    Args:
        config: an ``OFTConfig``.
        adapter_name: the adapter.
        model: the model that it is for, with the adapters that it has already.

    Raises:
        ConfigError: the name cannot be that of a folder or of an entry of a torch container, or PEFT would take it for
        a
            module to save; or the matching of a pattern does not end.
    """
    refuse_name(adapter_name)
    names = {name for _, layer in beside_adapters(model) if isinstance(layer, OFTLayer) for name in layer.oft_settings}
    for saved in getattr(config, "modules_to_save", None) or []:
        if clash := sorted(name for name in {*names, adapter_name} if name.endswith(saved)):
            raise ConfigError(
                f"modules_to_save={saved!r} with an adapter called {clash[0]!r}",
                got="the end of the adapter's name, so that PEFT takes the rotations for a module to save",
                do="Give the adapter another name",
            )
    keys = [key for key, _ in model.named_modules(remove_duplicate=False)]
    if getattr(config, "target_parameters", None):
        keys += [key for key, _ in model.named_parameters()]
    refuse_endless(config, keys)


def refuse_name(adapter_name: object) -> None:
    """Refuse a name that torch cannot use as a key of its containers, or that no folder can have.

    Raises:
        ConfigError: the name is not allowed.

    Example:
        >>> refuse_name("style"), refuse_name("oft_R")
        (None, None)
    """
    plain = isinstance(adapter_name, str) and 0 < len(adapter_name) <= 200 and adapter_name.isprintable()
    if not plain or any(mark in str(adapter_name) for mark in "./\\"):
        raise ConfigError(
            f"adapter_name={str(adapter_name)[:80]!r}", needed="a name without dots, slashes and control characters"
        )
    name = str(adapter_name)
    if hasattr(nn.ModuleDict({}), name) or hasattr(nn.ParameterDict({}), name):
        raise ConfigError(
            f"adapter_name={name!r}",
            got="the name of an attribute of torch's containers",
            needed="a name that torch.nn.ModuleDict can hold",
            do=f"Call it '{name.strip('_')}_adapter', for example",
        )


def refuse_endless(config: Any, names: Iterable[str]) -> None:
    """Try the patterns of a config on the names of a model's modules.

    Args:
        config: an ``OFTConfig``.
        names: the names that PEFT will match the patterns with.

    Raises:
        ConfigError: a pattern is not a regular expression, or its matching does not end within ``SECONDS``; names the
        field.

    Example:
        >>> from orthotune import OFTConfig
        >>> refuse_endless(OFTConfig(target_modules=r".*\\.q_proj"), ["layers.0.q_proj"])
    """
    known: list[str] | None = None
    for field, pattern, how, expression in _patterns(config):
        given = f"{field}={shown(pattern)}"
        if not isinstance(pattern, str) or len(pattern) > LONGEST:
            raise ConfigError(given, needed="a regular expression, or a list of names")
        try:
            re.compile(expression)
        except (re.error, RecursionError, OverflowError) as error:
            raise ConfigError(given, got=f"no regular expression: {error}", needed="one, or a list of names") from error
        if not harmless(pattern):
            known = list(names) if known is None else known
            if not _ends(how, expression, known):
                raise ConfigError(
                    given,
                    got=f"a pattern that does not end within {SECONDS:g} s on the names of {len(known)} modules",
                    needed="a list of names, or a pattern without a repetition inside a repetition",
                )


def harmless(pattern: str) -> bool:
    """Whether matching takes at most the square of a name's length, whatever the name: judged on the safe side.

    At most two repetitions, and one group that is not repeated itself; ways through several groups would multiply.

    Example:
        >>> harmless(r".*\\.(q_proj|v_proj)"), harmless("(a+)+$")
        (True, False)
    """
    bare = re.sub(r"\\.", "x", pattern, flags=re.DOTALL)
    bare = re.sub(r"\[\^?\]?[^\]]*\]", "x", bare).replace("(?:", "(")
    groups = bare.count("(")
    # Flags and the like may change what the rest means, down to where a class of letters begins.
    if groups > 1 or any(mark in bare for mark in (")*", ")+", ")?", "){", "(?")):
        return False
    repeats = sum(bare.count(mark) for mark in "*+?{")
    return repeats <= 2 and (groups == 0 or bare.count("|") <= 50)


def shown(pattern: Any) -> str:
    """A pattern for a message, as plain text; a long one is cut."""
    text = ascii(pattern)
    return text if len(text) <= 80 else f"{text[:80]}... ({len(text)} characters)"


def _patterns(config: Any) -> Iterable[tuple[str, Any, str, str]]:
    """Field, pattern, the function of ``re`` it goes to, and the expression that PEFT or ``config.py`` makes of it."""
    for field in ("target_modules", "exclude_modules"):
        value = getattr(config, field, None)
        if isinstance(value, str) and value.lower() != "all-linear":
            yield field, value, "fullmatch", value
    for name in _listed(getattr(config, "modules_to_save", None)):
        yield "modules_to_save", name, "match", rf"(^|.*\.){name}($|\..*)"
    for name in _listed(getattr(config, "layers_pattern", None)):
        yield "layers_pattern", name, "match", rf"(?:^|.*?\.){name}\.(?P<idx>\d+)\."
    for field in ("rank_pattern", "block_size_pattern", "alpha_pattern"):
        value = getattr(config, field, None)
        for name in value if isinstance(value, Mapping) else ():
            yield field, name, "match", rf"(.*\.)?({name})$"


def _listed(value: Any) -> Sequence[Any]:
    return [value] if isinstance(value, str) else list(value or ())


def _ends(how: str, pattern: str, names: list[str]) -> bool:
    # An interpreter that is embedded in another program may not be one that can be started.
    if not os.path.basename(sys.executable or "").lower().startswith(("python", "pypy")):
        return False
    command = [sys.executable, "-I", "-S", "-c", _TRY]
    try:
        done = subprocess.run(
            command, input=json.dumps([how, pattern, names]).encode(), timeout=SECONDS, check=False,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    except (subprocess.TimeoutExpired, OSError):
        return False
    return done.returncode == 0


def refuse_oversized(config: Any, tried: Iterable[OFTLayer]) -> None:
    """Refuse a config from a file that asks for far more parameters than the file holds.

    Args:
        config: an ``OFTConfig``; its ``load_context`` has the number of values in its file, None without a file.
        tried: the layers of the config, on the meta device.

    Raises:
        AdapterFileError: before anything is allocated.
    """
    stored = config.load_context.stored_numbers
    if stored is None:
        return
    layers = list(tried)
    wanted = sum(rotation.weight.numel() for layer in layers for rotation in layer.rotations("check").values())
    bases = sum(parameter.numel() for layer in layers for parameter in layer.get_base_layer().parameters())
    if wanted > max(SLACK * stored + ALWAYS, bases // SHARE):
        raise AdapterFileError(
            "the adapter's config",
            got=f"rotations of {wanted:,} parameters for this model, and {stored:,} in the file",
            needed="the r, oft_block_size and target_modules of the training",
            do="Get adapter_config.json and the weights from the same source",
        )
