"""PEFT's files mean here what they meant to the version that wrote them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from orthotune.errors import AdapterFileError
from orthotune.formats import read_adapter
from orthotune.formats.peft.beyond_stock import beyond_stock
from orthotune.formats.peft.fields import spec_of_fields

FIXTURES = Path(__file__).parents[1] / "fixtures"
# the layout with packed triangles, which began with 0.16
CASES = sorted(p for version in ("0.17.1", "0.21.2") for p in (FIXTURES / f"peft-{version}-oft").iterdir())


def _named(path: Path) -> str:
    return f"{path.parent.name}-{path.name}"


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(FIXTURES / "peft-0.21.2-oft" / "exact", tmp_path / "adapter"))


def _edit(adapter: Path, **fields: object) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize("case", CASES, ids=_named)
def test_rotation_is_the_one_of_the_writing_version(case: Path) -> None:
    numbers, state = load_file(case / "io.safetensors"), read_adapter(case)
    assert "lin" in state.layers
    for name, layer in state.layers.items():
        expected = numbers[f"{name}.rotation"]
        blocks = list(layer.rotation())
        count = expected.shape[0] // layer.block_size()
        # float32 on both sides; the two polynomials differ by 1e-5 and more here, the two directions by 0.1 and more
        torch.testing.assert_close(torch.block_diag(*(blocks * count)[:count]), expected, rtol=0, atol=2.5e-6)


def test_weight_turns_as_peft_merged_it() -> None:
    case = FIXTURES / "peft-0.21.2-oft" / "neumann5"
    numbers = load_file(case / "io.safetensors")
    turned = numbers["lin.weight"] @ torch.block_diag(*read_adapter(case).layers["lin"].rotation()).T
    torch.testing.assert_close(turned, numbers["lin.weight_merged"], rtol=0, atol=2.5e-6)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"peft_type": "OFT", "use_cayley_neumann": True}, "neumann_legacy"),
        ({"peft_type": "OFT", "use_cayley_neumann": True, "peft_version": "0.17.1"}, "neumann_legacy"),
        ({"peft_type": "OFT", "use_cayley_neumann": True, "peft_version": "0.18.0.dev0@abc"}, "neumann"),
        ({"peft_type": "OFT", "peft_version": "0.21.2"}, "neumann"),
        ({"peft_type": "OFT", "use_cayley_neumann": False}, "exact"),
        ({"peft_type": "ORTHOTUNE", "peft_version": "0.21.2"}, "exact"),
        (
            {"peft_type": "ORTHOTUNE", "use_cayley_neumann": True, "neumann_series": "legacy", "peft_version": "0.21"},
            "neumann_legacy",
        ),
    ],
)
def test_map_follows_the_version(config: dict, expected: str) -> None:
    assert spec_of_fields(config).map == expected


def test_parts_magnitude_and_the_rest_are_told_apart(adapter: Path) -> None:
    prefix = "base_model.model."
    save_file(
        {
            f"{prefix}attn.oft_R.q.weight": torch.zeros(2, 6),
            f"{prefix}attn.oft_R.k.weight": torch.zeros(1, 28),
            f"{prefix}attn.oft_magnitude": torch.ones(24),
            f"{prefix}emb.oft_embedding_R.weight": torch.zeros(3, 3),
            f"{prefix}head.weight": torch.zeros(5, 2),
        },
        adapter / "adapter_model.safetensors",
    )
    _edit(adapter, peft_type="ORTHOTUNE", side="out", scaled=True, block_share=True)
    state = read_adapter(adapter)
    attention = state.layers["attn"]
    assert set(attention.rotations) == {"q", "k"}
    assert attention.block_size("q") == 4
    assert attention.block_size("k") == 8
    assert attention.block_count("q") is None
    assert (attention.spec.side, attention.spec.scaled, attention.spec.map) == ("out", True, "exact")
    assert attention.magnitude is not None
    assert state.layers["emb"].embedding
    assert not attention.embedding
    assert set(state.other) == {"head.weight"}
    assert state.parameters == 12 + 28 + 24 + 9 + 10


def test_scaled_vectors_are_divided(adapter: Path) -> None:
    plain = read_adapter(adapter).layers["lin"].rotation()
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file({k: v * 2 * 7**0.5 for k, v in tensors.items()}, adapter / "adapter_model.safetensors")
    _edit(adapter, scaled=True)
    torch.testing.assert_close(read_adapter(adapter).layers["lin"].rotation(), plain)


def test_half_precision_vectors_give_float32_rotations(adapter: Path) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file({k: v.bfloat16() for k, v in tensors.items()}, adapter / "adapter_model.safetensors")
    assert read_adapter(adapter).layers["lin"].rotation().dtype == torch.float32


def test_what_stock_peft_cannot_express() -> None:
    stock = {"side": "in", "magnitude": False, "rank_pattern": {}, "target_parameters": None, "neumann_series": None}
    assert beyond_stock(stock) == []
    assert beyond_stock(stock | {"side": "out", "rank_pattern": {"lin": 4}}) == ["side", "rank_pattern"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"peft_type": "LORA"}, "peft_type 'LORA'"),
        ({"format_version": 2}, "newer orthotune"),
    ],
)
def test_other_configs_are_refused(adapter: Path, fields: dict, words: str) -> None:
    _edit(adapter, **fields)
    with pytest.raises(AdapterFileError, match=words):
        read_adapter(adapter)


def test_older_layout_is_named(adapter: Path) -> None:
    save_file({"base_model.model.lin.oft_r": torch.zeros(4, 4, 4)}, adapter / "adapter_model.safetensors")
    with pytest.raises(AdapterFileError, match=r"tensors of PEFT 0\.8 to 0\.15.*oft_R\.weight"):
        read_adapter(adapter)


def test_tensor_that_is_no_triangle_is_named(adapter: Path) -> None:
    save_file({"base_model.model.lin.oft_R.weight": torch.zeros(4, 5)}, adapter / "adapter_model.safetensors")
    with pytest.raises(AdapterFileError, match=r"lin\.oft_R\.weight.*\[4, 5\]"):
        read_adapter(adapter)


def test_broken_config_and_missing_files_are_named(adapter: Path, tmp_path: Path) -> None:
    (adapter / "adapter_config.json").write_text("{")
    with pytest.raises(AdapterFileError, match=r"adapter_config\.json, line 1: not JSON"):
        read_adapter(adapter)
    (tmp_path / "empty").mkdir()
    with pytest.raises(AdapterFileError, match=r"empty is not an adapter.*adapter_config\.json"):
        read_adapter(tmp_path / "empty")
    with pytest.raises(AdapterFileError, match="There is no adapter at"):
        read_adapter(tmp_path / "nowhere")


def test_pickles_are_refused(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(AdapterFileError, match="pickle"):
        read_adapter(adapter)
