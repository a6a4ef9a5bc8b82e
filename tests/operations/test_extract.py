"""An adapter from a finetuned model: exact where the change is a rotation, and a residual where it is not."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2MoeConfig, Qwen2MoeForCausalLM
from typer.testing import CliRunner

import orthotune
from orthotune import OFTConfig, get_peft_model
from orthotune.cli.main import app
from orthotune.errors import AdapterFileError, ConfigError
from tests.support.contract_cases import randomize

CONFIG = LlamaConfig(
    hidden_size=24, intermediate_size=36, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
    vocab_size=29,
)  # fmt: skip
TOKENS = torch.tensor([[3, 7, 1, 22, 28]])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> LlamaForCausalLM:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        model = LlamaForCausalLM(CONFIG).eval()
    model.save_pretrained(tmp_path_factory.mktemp("base"))
    folder = tmp_path_factory.getbasetemp() / "base0"
    return LlamaForCausalLM.from_pretrained(folder)


def _finetuned(base: LlamaForCausalLM, folder: Path, **fields: Any) -> LlamaForCausalLM:
    """The base with an adapter of some transform merged, saved."""
    config = OFTConfig(target_modules=["q_proj", "o_proj", "down_proj"], **fields)
    merged = randomize(get_peft_model(copy.deepcopy(base), config)).merge_and_unload()
    merged.save_pretrained(folder)
    return merged


@pytest.mark.parametrize(
    ("trained", "found"),
    [
        ({"oft_block_size": 12, "magnitude": True}, {"block_size": 12}),
        ({"oft_block_size": 12, "side": "out"}, {"block_size": 12, "side": "out", "magnitude": False}),
        ({"transform": "subspace", "r": 6}, {"rank": 6, "magnitude": False}),
    ],
    ids=["blocks and magnitude", "outputs", "subspace"],
)
def test_what_is_a_rotation_is_found(
    base: LlamaForCausalLM, tmp_path: Path, trained: dict[str, Any], found: dict[str, Any]
) -> None:
    merged = _finetuned(base, tmp_path / "after", **trained)
    done = orthotune.extract(base.name_or_path, tmp_path / "after", tmp_path / "adapter", **found)
    assert [row.layer.rpartition(".")[2] for row in done.layers] == ["q_proj", "o_proj", "down_proj"] and not done.left
    assert all(
        row.residual < 1e-4 and row.change > 0.1 and not row.still for row in done.layers
    )  # float32 in the files
    model = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "adapter")
    with torch.no_grad():
        torch.testing.assert_close(model(TOKENS).logits, merged(TOKENS).logits, rtol=0, atol=1e-5)


def test_what_is_none_has_a_residual_and_the_rest_is_named(base: LlamaForCausalLM, tmp_path: Path) -> None:
    after = copy.deepcopy(base)
    with torch.no_grad():
        for name in ("q_proj", "v_proj"):
            weight = after.get_parameter(f"model.layers.0.self_attn.{name}.weight")
            weight.add_(0.01 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)))
        after.model.norm.weight.mul_(1.1)
    after.save_pretrained(tmp_path / "after")
    result = CliRunner().invoke(
        app, ["extract", base.name_or_path, str(tmp_path / "after"), "-o", str(tmp_path / "out"), "--json"]
    )
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert [row["layer"].rpartition(".")[2] for row in told["layers"]] == ["q_proj", "v_proj"]
    # a small random change has as large a part within the tangents of the rotations as those have dimensions
    assert all(0.3 < row["residual"] < 0.95 for row in told["layers"]) and told["left"] == ["model.norm.weight"]
    state = orthotune.read_adapter(tmp_path / "out")
    W = base.model.layers[0].self_attn.q_proj.weight.detach()
    V = after.model.layers[0].self_attn.q_proj.weight.detach()
    row = told["layers"][0]
    measured = (state.layers[row["layer"]].apply(W) - V).norm() / (V - W).norm()
    assert float(measured) == pytest.approx(row["residual"], rel=1e-3)


def test_nothing_is_nearer(base: LlamaForCausalLM) -> None:
    """No small further rotation lowers the residual."""
    from orthotune.operations.extract import nearest

    generator = torch.Generator().manual_seed(5)
    old, new = (torch.randn(3, 9, 6, dtype=torch.float64, generator=generator) for _ in range(2))
    X = nearest(old, new)
    torch.testing.assert_close(torch.linalg.det(X), torch.ones(3, dtype=torch.float64))
    least = (old @ X - new).norm(dim=(-2, -1))
    for _ in range(20):
        K = 0.05 * torch.randn(3, 6, 6, dtype=torch.float64, generator=generator)
        other = X @ torch.linalg.matrix_exp(K - K.mT)
        assert ((old @ other - new).norm(dim=(-2, -1)) >= least).all()


def test_wrong_inputs_are_refused_and_write_nothing(base: LlamaForCausalLM, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(AdapterFileError, match="0 changed parameters"):
        orthotune.extract(base.name_or_path, base.name_or_path, out)
    for wrong in ({"side": "out"}, {"rank": 4}, {"block_size": 1}, {"rank": 1, "magnitude": False}):
        with pytest.raises(ConfigError):
            orthotune.extract(base.name_or_path, base.name_or_path, out, **wrong)
    wider = LlamaForCausalLM(LlamaConfig(**CONFIG.to_dict() | {"intermediate_size": 40}))
    wider.save_pretrained(tmp_path / "wider")
    with pytest.raises(AdapterFileError, match="gate_proj"):
        orthotune.extract(base.name_or_path, tmp_path / "wider", out)
    result = CliRunner().invoke(app, ["extract", base.name_or_path, base.name_or_path, "-o", str(out), "--side", "up"])
    assert result.exit_code != 0 and not out.exists()


def test_a_layer_of_one_feature_is_left_out_and_named(tmp_path: Path) -> None:
    sizes = {"hidden_size": 24, "intermediate_size": 24, "moe_intermediate_size": 24, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_experts": 2, "num_experts_per_tok": 1}
    config = Qwen2MoeConfig(**sizes, **heads, shared_expert_intermediate_size=24, vocab_size=29)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        model = Qwen2MoeForCausalLM(config)
    model.save_pretrained(tmp_path / "before")
    gate, query = (f"model.layers.0.{name}.weight" for name in ("mlp.shared_expert_gate", "self_attn.q_proj"))
    with torch.no_grad():
        model.get_parameter(gate).mul_(1.1)
        model.get_parameter(query).copy_(model.get_parameter(query).flip(0))
    model.save_pretrained(tmp_path / "after")
    done = orthotune.extract(
        tmp_path / "before", tmp_path / "after", tmp_path / "out", side="out", magnitude=False, block_size=4
    )
    assert [row.layer for row in done.layers] == [query.removesuffix(".weight")] and done.left == [gate]
