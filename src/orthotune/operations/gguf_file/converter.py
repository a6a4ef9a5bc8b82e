"""llama.cpp's own converter: found, called, or given as the command to call."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from orthotune.errors import ConfigError, OutputError

NAME = "convert_hf_to_gguf.py"


def find_converter(given: str | Path | None) -> Path | None:
    """The converter: the file or clone of llama.cpp that is named, or the one on the search path.

    Args:
        given: ``convert_hf_to_gguf.py``, or a folder with it; None looks on the search path alone.

    Returns:
        The file, or None if nothing is named and there is none.

    Raises:
        ConfigError: there is no converter at the path.

    Example:
        >>> find_converter("no/such/clone")
        Traceback (most recent call last):
            ...
        orthotune.errors.ConfigError: --converter no/such/clone. Needed: convert_hf_to_gguf.py of llama.cpp, or the \
folder with it.
    """
    if given is None:
        found = shutil.which(NAME)
        return None if found is None else Path(found)
    path = Path(given) / NAME if Path(given).is_dir() else Path(given)
    if not path.is_file():
        raise ConfigError(f"--converter {given}", needed=f"{NAME} of llama.cpp, or the folder with it")
    return path.absolute()


def arguments(converter: str | Path, merged: Path, out: Path, kind: str) -> list[str]:
    """The command that makes a GGUF file of a merged folder.

    Example:
        >>> arguments(NAME, Path("merged"), Path("model.gguf"), "f16")[1:]
        ['convert_hf_to_gguf.py', 'merged', '--outfile', 'model.gguf', '--outtype', 'f16']
    """
    return [sys.executable, str(converter), str(merged), "--outfile", str(out), "--outtype", kind]


def command(merged: Path, out: Path, kind: str) -> str:
    """The same command as a line for a shell, for a converter that is not here yet."""
    return shlex.join(["python", *arguments(f"llama.cpp/{NAME}", merged, out, kind)[1:]])


def convert(converter: Path, merged: Path, out: Path, kind: str) -> None:
    """Call the converter.

    Args:
        converter: from :func:`find_converter`.
        merged: a model folder.
        out: the file that is made.
        kind: ``f16``, ``bf16`` or ``q8_0``.

    Raises:
        OutputError: the converter ends with an error, or makes no file; with its last line.
    """
    done = subprocess.run(arguments(converter, merged, out, kind), capture_output=True, text=True, check=False)
    if done.returncode or not out.is_file():
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise OutputError(
            f"{converter}", got=lines[-1].strip()[:300] if lines else f"exit code {done.returncode}",
            needed="a converter that knows the model, with the packages that it needs",
            do=f"Call it by hand on a merged folder: {command(Path('MERGED'), Path('model.gguf'), kind)}",
        )  # fmt: skip
