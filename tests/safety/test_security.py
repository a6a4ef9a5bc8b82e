"""What comes from elsewhere is data: nothing of it is run, followed out of its folder, or allocated on its word."""

from __future__ import annotations

import ast
import json
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn

from orthotune import OFTConfig, get_peft_model, load_adapter
from orthotune.errors import AdapterFileError, ConfigError, OrthotuneError
from orthotune.files.safetensors_file import read_tensors
from orthotune.files.tensor_entries import read_header
from orthotune.formats import read_adapter
from orthotune.operations.checkpoint.model_folder import open_checkpoint
from orthotune.tuner import admission
from tests.support.bases import network
from tests.support.producers import FIXTURES, Produced
from tests.support.source import MODULES, ROOT, named, tree_of

EXACT = Produced(FIXTURES / "peft-0.21.2-oft" / "exact", FIXTURES / "peft-0.21.2-oft" / "exact")


def _folder(place: Path, **changes: Any) -> Path:
    """PEFT's own adapter with other fields in its config."""
    shutil.copytree(EXACT.folder, place, dirs_exist_ok=True)
    path = place / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return place


# Source: what the package itself may not do.


def test_the_source_runs_nothing_that_is_data() -> None:
    paths = [*MODULES, *sorted((ROOT / "benchmarks").glob("*.py"))]
    assert len(paths) > 300
    for path in paths:
        for node in ast.walk(tree_of(path)):
            _runs_nothing(node, f"{named(path)}, line {getattr(node, 'lineno', 0)}")


def _runs_nothing(node: ast.AST, where: str) -> None:
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
        assert not {"pickle", "dill", "joblib", "shelve", "marshal"} & set(modules), where
    if not isinstance(node, ast.Call):
        return
    called, words = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
    assert called not in ("eval", "exec", "os.system", "yaml.load", "numpy.load", "np.load"), where
    assert called != "torch.load" or words.get("weights_only") == "True", where
    assert words.get("trust_remote_code", "False") == "False" and words.get("shell", "False") == "False", where
    assert not called.endswith(".extractall"), where


# Pickles and archives.


def test_names_in_an_archive_lead_nowhere(tmp_path: Path) -> None:
    """torch's archive is read in memory; a member that is called like a path elsewhere is not written there."""
    torch.save({"x.R": torch.zeros(2, 2, 2)}, tmp_path / "plain.pt")
    inner = tmp_path / "inner"
    inner.mkdir()
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(inner / "a.pt", "w") as made:
        for name in plain.namelist():
            made.writestr(name, plain.read(name))
        made.writestr("../escaped", b"x")
        made.writestr("/" + str(tmp_path / "escaped").lstrip("/"), b"x")
    try:
        read_adapter(inner / "a.pt")
    except OrthotuneError as error:
        assert len(str(error)) < 2000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["inner", "plain.pt"]


# Safetensors headers.


def _entry(shape: list[int], offsets: list[Any], dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


NAME = "lora_unet_blk_lin.oft_R.weight"
#: Body of 24 bytes: six numbers.
HEADERS: dict[str, Any] = {
    "overlapping": {NAME: _entry([6], [0, 24]), "b": _entry([2], [4, 12])},
    "with a gap": {NAME: _entry([2], [0, 8]), "b": _entry([2], [16, 24])},
    "not from the start": {NAME: _entry([2], [16, 24])},
    "backwards": {NAME: _entry([6], [24, 0]), "b": _entry([6], [0, 24])},
    "before the start": {NAME: _entry([6], [-24, 0]), "b": _entry([6], [0, 24])},
    "huge before the start": {NAME: _entry([1 << 58], [-(1 << 60) + 24, 24]), "b": _entry([6], [0, 24])},
    "product overflows": {NAME: _entry([1 << 62, 1 << 62, 16], [0, 24])},
    "product wraps around to 24 bytes": {NAME: _entry([(1 << 63) + 3, 2], [0, 24])},
    "shape too large": {NAME: _entry([1 << 40], [0, 24])},
    "shape negative": {NAME: _entry([-2, -3], [0, 24])},
    "shape of fractions": {NAME: _entry([1.5, 4], [0, 24])},  # type: ignore[list-item]
    "shape of truths": {NAME: _entry([True, 6], [0, 24])},
    "no shape": {NAME: {"dtype": "F32", "data_offsets": [0, 24]}},
    "offsets of words": {NAME: _entry([6], ["0", 24])},
    "three offsets": {NAME: _entry([6], [0, 24, 24])},
    "no such type": {NAME: _entry([6], [0, 24], dtype=7)},
    "another type": {NAME: _entry([6], [0, 24], dtype="F64")},
}


def _raw(path: Path, header: bytes, body: bytes = bytes(24)) -> Path:
    path.write_bytes(struct.pack("<Q", len(header)) + header + body)
    return path


@pytest.mark.parametrize("how", HEADERS)
@pytest.mark.parametrize("reader", [read_adapter, read_tensors, read_header], ids=lambda one: one.__name__)
def test_headers_that_lie_are_refused_before_anything_is_allocated(
    how: str, reader: Callable[[Path], Any], tmp_path: Path
) -> None:
    with pytest.raises(AdapterFileError, match=r"a\.safetensors"):
        reader(_raw(tmp_path / "a.safetensors", json.dumps(HEADERS[how]).encode()))


@pytest.mark.parametrize("reader", [read_adapter, read_tensors, read_header], ids=lambda one: one.__name__)
def test_header_lengths_and_names_that_cannot_be(reader: Callable[[Path], Any], tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    for length in (1 << 60, (1 << 64) - 1, (1 << 63) + 8):
        path.write_bytes(struct.pack("<Q", length) + bytes(100))
        with pytest.raises(AdapterFileError, match="not a safetensors file"):
            reader(path)
    twice = f'{{"{NAME}": {json.dumps(_entry([6], [0, 24]))}, "{NAME}": {json.dumps(_entry([3, 2], [0, 24]))}}}'
    with pytest.raises(AdapterFileError, match=f"the name '{NAME}' twice"):
        reader(_raw(path, twice.encode()))


def test_a_type_that_nobody_knows_is_refused_in_words(tmp_path: Path) -> None:
    path = _raw(tmp_path / "a.safetensors", json.dumps({NAME: _entry([6], [0, 24], dtype="F1024")}).encode())
    for reader in (read_adapter, read_tensors):
        with pytest.raises(AdapterFileError, match=r"a\.safetensors is damaged"):
            reader(path)  # type: ignore[operator]


# Names of shards.


@pytest.mark.parametrize("shard", ["../outside.safetensors", "/etc/passwd", "..", "", "inner/x.safetensors", 5, None])
def test_an_index_cannot_lead_out_of_its_folder(shard: Any, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"w": torch.ones(2)}, tmp_path / "outside.safetensors")
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": shard}}))
    with pytest.raises(AdapterFileError):
        open_checkpoint(folder)


# Names of adapters.


@pytest.mark.parametrize(
    "name", ["../up", "/tmp/evil", "a/b", "a\\b", "..", ".", "v1.0", "", "a\0b", "a\nb", "x" * 300]
)
def test_an_adapter_name_is_no_path(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="adapter_name"):
        get_peft_model(nn.Sequential(nn.Linear(8, 4)), OFTConfig(r=2, target_modules=["0"]), adapter_name=name)
    with pytest.raises(ConfigError, match="adapter_name"):
        load_adapter(network(EXACT), EXACT.adapter, name)
    model = get_peft_model(nn.Sequential(nn.Linear(8, 4)), OFTConfig(r=2, target_modules=["0"]))
    with pytest.raises(ConfigError, match="adapter_name"):
        model.add_adapter(name, OFTConfig(r=2, target_modules=["0"]))
    model.save_pretrained(tmp_path / "saved")
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


# Patterns.

#: What blows up, as a target, on names of a few dozen letters.
HOSTILE = [
    "(.*)*$x",
    "(a+)+$|(.+)+y",
    r"(\w|\w\w)+!",
    r"([\w.]+)*!",
    "(.|.)" * 40 + "!",
    ".?" * 40 + "." * 60,
    ".*" * 12 + "!",
    r"(?x)  # [ " + "\n (.+)+ ! # ]",
    r"[^\]](.+)+(.+)+![x]?",
    r"(?=(.*)*!).*",
]
LONG = "the_first_of_some_blocks_with_long_names.attention.to_q_projection"


def _long() -> nn.Module:
    root = nn.Module()
    parent: nn.Module = root
    for part in LONG.split(".")[:-1]:
        parent.add_module(part, child := nn.Module())
        parent = child
    parent.add_module(LONG.rpartition(".")[2], nn.Linear(8, 4))
    return root


@pytest.mark.parametrize("pattern", HOSTILE)
def test_a_hostile_pattern_is_refused_in_time(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "SECONDS", 0.3)
    with pytest.raises(ConfigError, match="target_modules=.*does not end within 0.3 s on the names of"):
        get_peft_model(_long(), OFTConfig(r=2, target_modules=pattern))


@pytest.mark.parametrize("field", ["exclude_modules", "modules_to_save", "rank_pattern", "layers_pattern"])
def test_every_field_with_patterns_is_tried(field: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(admission, "SECONDS", 0.3)
    values: dict[str, Any] = {
        "exclude_modules": "(.*)*$x",
        "modules_to_save": ["((.*)*x)"],
        "rank_pattern": {"(.*)*x": 2},
        "layers_pattern": ["(.*)*x"],
    }
    more = {"layers_to_transform": [0]} if field == "layers_pattern" else {}
    folder = _folder(tmp_path / "adapter", **{field: values[field]}, **more)
    model = _long()
    model.add_module("lin", network(EXACT).get_submodule("lin"))
    with pytest.raises(ConfigError, match=f"{field}=.*does not end within"):
        PeftModel.from_pretrained(model, folder)


@pytest.mark.parametrize("pattern", ["(", "*", "a{1,99999999999}", "(?P<n>", "[z-a]", "(" * 5000 + ")" * 5000])
def test_what_is_no_pattern_is_told(pattern: str) -> None:
    with pytest.raises(ConfigError, match="target_modules=.*no regular expression"):
        get_peft_model(nn.Sequential(nn.Linear(8, 4)), OFTConfig(r=2, target_modules=pattern))


@pytest.mark.parametrize(
    "pattern",
    [
        r".*\.(to_q|to_q_projection)",
        r"^(?!.*visual).*(?:to_q|to_q_projection)$",
        r"(?:.*?(?:some|vision).*?(?:self_attn|attention|mlp).*?(?:q_proj|to_q_projection).*?)",
        r"(?i).*\.(TO_Q|TO_Q_PROJECTION)",
        r"(?:\w+\.)*to_q_projection",  # a repetition within a repetition that is quick all the same
        LONG.replace(".", r"\."),
        "|".join(f"model\\.layers\\.{i}\\.q" for i in range(400)) + "|.*projection",
    ],
)
def test_patterns_that_people_use_mean_what_they_did(pattern: str) -> None:
    model = get_peft_model(_long(), OFTConfig(r=2, target_modules=pattern))
    assert model.targeted_module_names == [LONG]


def test_plain_patterns_need_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "_ends", lambda *_: pytest.fail("a process was started"))
    for pattern in (r".*\.(q_proj|v_proj)", r"model\.layers\.\d+\..*", "q|k|v", r".*[qv]_proj"):
        admission.refuse_endless(OFTConfig(target_modules=pattern), ["a"])


def test_what_counts_as_plain_is_quick_on_the_worst_names() -> None:
    """Judged harmless means: at most the square of the length, and PEFT's own prefix."""
    import re

    for pattern in (".*.*!", "[^x]+.*!", r"\w*\w*(a|b)!", "(?:a|aa|aaa)!", ".+x?!", "a*!|b*!"):
        assert admission.harmless(pattern)
        for name in ("a" * 1000, "a." * 500):
            assert re.match(rf"(.*\.)?({pattern})$", name[:200]) is None
            assert re.fullmatch(pattern, name) is None
    for pattern in HOSTILE:
        assert not admission.harmless(pattern)


# Sizes.


@pytest.mark.parametrize(
    "changes",
    [{"r": 1, "oft_block_size": 0}, {"r": 0, "oft_block_size": 2**31}, {"r": 0, "oft_block_size": 8192},
     {"rank_pattern": {"big": 1}}],
)  # fmt: skip
@pytest.mark.parametrize("host", [True, False])
def test_a_tiny_file_cannot_ask_for_a_large_rotation(
    changes: dict[str, Any], host: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _folder(tmp_path / "adapter", target_modules=["lin", "big"], **changes)
    model = network(EXACT)
    big = nn.utils.skip_init(nn.Linear, 8192, 8192, bias=False, dtype=torch.bfloat16)  # memory that nobody touches
    model.add_module("big", big)  # a block of that size is 134 MB
    real = torch.nn.Parameter.__new__

    def small(cls: Any, data: Any = None, *args: Any, **kwargs: Any) -> Any:
        assert data is None or data.device.type == "meta" or data.numel() < 1_000_000, "something large was allocated"
        return real(cls, data, *args, **kwargs)

    monkeypatch.setattr(torch.nn.Parameter, "__new__", small)
    with pytest.raises(OrthotuneError):
        if host:
            PeftModel.from_pretrained(model, folder)
        else:
            load_adapter(model, folder)


@pytest.mark.parametrize("value", [2**31, 2**70, 1001, 0, -1, 1.5, "5", True, None, [], 1e400])
def test_a_series_has_a_length(value: Any, tmp_path: Path) -> None:
    for changes in (
        {"num_cayley_neumann_terms": value},
        {"peft_type": "ORTHOTUNE", "layer_settings": {"lin": {"exact": False, "terms": value}}},
    ):
        folder = _folder(tmp_path / "adapter", use_cayley_neumann=True, **changes)
        with pytest.raises(OrthotuneError):
            PeftModel.from_pretrained(network(EXACT), folder)
        if value is not None:  # a field without a value has its default where files are read
            with pytest.raises(OrthotuneError):
                read_adapter(folder)


# Code beside a model.

_CODE = "from pathlib import Path\nPath({mark!r}).touch()\n"


def _model_with_code(folder: Path, mark: Path) -> Path:
    from tests.support.tiny_text import make_tokenizer

    folder.mkdir()
    (folder / "modeling_evil.py").write_text(_CODE.format(mark=str(mark)))
    (folder / "config.json").write_text(
        json.dumps({
            "model_type": "evil", "architectures": ["EvilModel"],
            "auto_map": {
                "AutoConfig": "modeling_evil.EvilConfig", "AutoModelForCausalLM": "modeling_evil.EvilModel",
            },
        })
    )  # fmt: skip
    make_tokenizer().save_pretrained(folder)
    save_file({"w": torch.ones(2)}, folder / "model.safetensors")
    return folder


def test_code_beside_a_model_is_never_run(tmp_path: Path) -> None:
    from orthotune.operations.base_model import load_base
    from orthotune.operations.checkpoint.base_files import open_base
    from orthotune.operations.checkpoint.skeleton import _empty_model
    from orthotune.text.causal_model import load_model

    mark, folder = tmp_path / "ran", tmp_path / "model"
    _model_with_code(folder, mark)
    open_base(folder)
    for load in (
        lambda: load_model(str(folder), torch.float32),
        lambda: load_base(str(folder)),
        lambda: _empty_model(folder),
    ):
        with pytest.raises(ValueError):  # transformers' own, or ours, which are ValueErrors too
            load()
    assert not mark.exists()


def test_a_name_in_a_config_makes_no_class_of_anything(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    from orthotune.operations.base_model import load_base

    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "logging"}))
    with pytest.raises(OrthotuneError, match="_class_name 'logging'"):
        load_base(str(tmp_path))


def test_code_beside_a_pipeline_is_never_run(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    from orthotune.operations.base_model import load_base

    mark, folder = tmp_path / "ran", tmp_path / "model"
    folder.mkdir()
    (folder / "pipeline.py").write_text(_CODE.format(mark=str(mark)) + "class Evil: pass\n")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": ["pipeline", "Evil"], "unet": [None, None]}))
    with pytest.raises(Exception):  # noqa: B017 (diffusers' own words)
        load_base(str(folder))
    assert not mark.exists()


# What is shown.


def test_text_from_a_file_moves_no_cursor(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from orthotune.cli.main import app

    evil = "\x1b[2J\x1b]0;owned\x07[red]<script>alert(1)</script>"
    tensors = load_file(FIXTURES / "onetrainer-oftv2-2026-08" / "plain" / "adapter_internal.safetensors")
    named = {name.replace("blk", f"blk{evil}"): tensor for name, tensor in tensors.items()}
    path = tmp_path / "a.safetensors"
    save_file(named, path, {"modelspec.title": evil, "ss_network_args": evil})
    folder = _folder(tmp_path / "adapter", base_model_name_or_path=evil + "[/]", revision=evil)
    for adapter in (path, folder):
        for words in (["identify", str(adapter)], ["inspect", str(adapter)], ["inspect", str(adapter), "--json"]):
            done = CliRunner().invoke(app, words)
            assert done.exit_code == 0, done.output
            assert "\x1b[2J" not in done.output and "\x07" not in done.output, words
    wrong = tmp_path / "wrong.safetensors"
    save_file({f"{evil}.oft_R.weight": torch.ones(2, 4)}, wrong)  # four numbers are no triangle; the error names it
    done = CliRunner().invoke(app, ["identify", str(wrong)])
    assert done.exit_code == 2 and "\\x1b[2J" in done.output and "\x1b" not in done.output
