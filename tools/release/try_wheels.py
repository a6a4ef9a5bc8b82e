"""Try the wheels and the source archive as a user gets them: in an environment that sees no clone.

    python tools/release/try_wheels.py dist

The environment takes the other libraries (torch, PEFT, ...) from the one that runs this script, and orthotune and
orthotune-worlds from the wheels alone.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FIXTURE = ROOT / "tests" / "fixtures" / "lycoris-2.0.0" / "diag_plain" / "adapter.safetensors"
MIB = 2**20
#: What a user pays at most for a library without the data of the worlds (13 MiB): its source compresses to 1.1 MiB.
LARGEST_WHEEL = 2 * MIB
#: What stays in the clone: names that no file of the library's wheel may hold.
LEFT_OUT = ("/bench/", "harness", "build_text", "build_image", "pretrain", ".safetensors", ".jsonl.gz")

FIRST_STEPS = """
import sys
import torch
from torch import nn
import orthotune
from orthotune import OFTConfig, PeftModel, get_peft_model
from orthotune.worlds import text
assert orthotune.__file__.startswith(sys.prefix), orthotune.__file__
def base():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 5))
model = get_peft_model(base(), OFTConfig(oft_block_size=4, target_modules=["0", "2"]))
with torch.no_grad():
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.normal_(std=0.1)
x = torch.randn(3, 12)
model.eval().save_pretrained("adapter")
again = PeftModel.from_pretrained(base(), "adapter").eval()
assert torch.equal(again(x), model(x)) and not torch.allclose(again(x), base()(x))
torch.testing.assert_close(again.merge_and_unload()(x), model(x))
try:
    text.load_split("new_test")
except orthotune.OrthotuneError as error:
    assert 'pip install "orthotune[worlds]"' in str(error), error
else:
    raise AssertionError("the worlds' data is here before its wheel is installed")
"""
WORLDS = """
from orthotune.worlds import image, text
assert text.load_split("new_test") and (text.MODEL / "model.safetensors").is_file()
assert (image.PIPELINE / "model_index.json").is_file() and image.load_sources().digits.shape[1:] == (8, 8)
"""


class Failed(Exception):
    """A wheel that a user could not work with; the message is one line."""


class Environment:
    """A virtual environment in ``folder`` with the libraries of this one, and none of its editable installations."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        venv.create(folder / "venv", symlinks=True)
        self.python = folder / "venv" / "bin" / "python"
        (site,) = (folder / "venv").glob("lib/python*/site-packages")
        libraries = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
        # The .pth files of a folder that is named in one are not read: editable installations stay out.
        (site / "libraries.pth").write_text("".join(f"{path}\n" for path in libraries), encoding="utf-8")

    def install(self, wheel: Path) -> None:
        """Install a wheel, without its dependencies and without an index."""
        asked = ["--python", str(self.python), "install", "--quiet", "--no-deps", "--no-index", "--force-reinstall"]
        done = subprocess.run(
            [sys.executable, "-m", "pip", "--disable-pip-version-check", *asked, str(wheel)],
            capture_output=True, text=True, cwd=self.folder,
        )  # fmt: skip
        if done.returncode:
            raise Failed(f"{wheel.name} is not installed: {done.stderr.strip()}")

    def run(self, *words: str, status: int = 0, shows: str = "") -> str:
        """Run a program of the environment outside of the clone; its output.

        Args:
            words: the program and its arguments.
            status: the exit status that is right.
            shows: what its output has to hold.

        Raises:
            Failed: another exit status, or other output.
        """
        clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
        done = subprocess.run(
            [str(self.python.with_name(words[0])), *words[1:]], cwd=self.folder, capture_output=True, text=True,
            env=clean | {"HF_HUB_OFFLINE": "1"}, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        output = done.stdout + done.stderr
        if done.returncode != status or shows not in output:
            shown = " ".join(word if "\n" not in word else "..." for word in words)
            needed = f"status {status}" + (f" and {shows!r}" if shows else "")
            raise Failed(f"{shown}: status {done.returncode}, needed {needed}. Its output:\n{output}")
        return output


def main() -> int:
    """Try what is in a folder; 1 if something failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with the two wheels and the source archive")
    folder = parser.parse_args().folder.resolve()
    try:
        library, worlds, source = (
            _only(folder, pattern) for pattern in ("orthotune-*.whl", "orthotune_worlds-*.whl", "orthotune-*.tar.gz")
        )
        check_contents(library, worlds, source)
        with tempfile.TemporaryDirectory(prefix="orthotune-wheels-") as scratch:
            try_out(Environment(Path(scratch)), library, worlds)
    except Failed as failure:
        print(f"FAILED: {failure}", file=sys.stderr)
        return 1
    for path in (library, worlds, source):
        print(f"{path.stat().st_size / MIB:6.2f} MiB  {path.name}")
    return 0


def check_contents(library: Path, worlds: Path, source: Path) -> None:
    """Versions in step, nothing of the clone in the library, and the same library from the source archive."""
    versions = {path.name.removesuffix(".tar.gz").split("-")[1] for path in (library, worlds, source)}
    if len(versions) != 1:
        raise Failed(f"versions differ: {', '.join(sorted(versions))}")
    names = zipfile.ZipFile(library).namelist()
    extra = [name for name in names if any(part in name for part in LEFT_OUT)]
    if extra:
        raise Failed(f"{library.name} holds {', '.join(extra)}")
    size = library.stat().st_size
    if size > LARGEST_WHEEL:
        raise Failed(f"{library.name} has {size / MIB:.2f} MiB, needed {LARGEST_WHEEL / MIB:g} at most")
    for wanted in ("orthotune/py.typed", "orthotune/recipes/presets/"):
        if not any(name.startswith(wanted) for name in names):
            raise Failed(f"{library.name} lacks {wanted}")
    again = _built_from(source)
    if set(again) != set(names):
        raise Failed(f"built from {source.name} the wheel differs by {', '.join(sorted(set(again) ^ set(names)))}")


def _built_from(source: Path) -> list[str]:
    """The names in the wheel that the source archive gives."""
    with tempfile.TemporaryDirectory(prefix="orthotune-source-") as scratch:
        with tarfile.open(source) as archive:
            archive.extractall(scratch, filter="data")
        (folder,) = Path(scratch).iterdir()
        build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", scratch]
        done = subprocess.run(build, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise Failed(f"{source.name} gives no wheel: {done.stderr.strip()}")
        return zipfile.ZipFile(_only(Path(scratch), "*.whl")).namelist()


def try_out(environment: Environment, library: Path, worlds: Path) -> None:
    """The first things that a user does, before the worlds' data is installed and after."""
    version = library.name.split("-")[1]
    environment.install(library)
    environment.run("orthotune", "--help", shows="merge")
    environment.run("orthotune", "--version", shows=f"orthotune {version}")
    environment.run("orthotune", "identify", str(FIXTURE), shows="LyCORIS")
    environment.run("python", "-c", FIRST_STEPS)
    environment.run("orthotune", "bench", "smoke", status=2, shows="clone")
    environment.run("orthotune", "bench", "--explain", shows="plan: ")
    environment.install(worlds)
    environment.run("python", "-c", WORLDS)


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise Failed(f"{folder}: {len(found)} files {pattern}, needed one: run make dist")
    return found[0]


if __name__ == "__main__":
    sys.exit(main())
