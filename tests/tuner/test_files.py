"""Adapter directories: ours, stock PEFT's, damaged ones."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn

from orthotune import OFTConfig, get_peft_model
from orthotune.errors import AdapterFileError

FIXTURES = Path(__file__).parent.parent / "fixtures"


@pytest.fixture
def saved(llama, ids, turn, tmp_path):
    model = turn(get_peft_model(llama(), OFTConfig(oft_block_size=8, target_modules=["q_proj", "down_proj"])))
    model.save_pretrained(str(tmp_path / "adapter"))
    return tmp_path / "adapter", model(ids).logits.detach()


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_save_and_load(saved, llama, ids, low_cpu_mem_usage):
    path, expected = saved
    model = PeftModel.from_pretrained(llama(), str(path), low_cpu_mem_usage=low_cpu_mem_usage, torch_device="cpu")
    assert torch.equal(model(ids).logits, expected)


STOCK = """
import json, sys, warnings
warnings.simplefilter("ignore")
import torch
from peft import PeftModel
from transformers import LlamaConfig, LlamaForCausalLM
assert "orthotune" not in sys.modules
config, cases = json.loads(sys.argv[1])
ids = torch.randint(0, 100, (3, 7), generator=torch.Generator().manual_seed(1))
for name, path in cases:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**config)).eval()
    try:
        output = PeftModel.from_pretrained(model, path)(ids).logits
    except Exception as error:
        print(json.dumps([name, repr(error)]))
    else:
        print(json.dumps([name, output.flatten().tolist()]))
"""


def test_stock_peft_gives_our_output_or_fails_aloud(llama, llama_fields, ids, turn, fresh_after_peft, tmp_path):
    """One process without orthotune loads everything that we save."""
    expressible = {
        "exact": {},
        "shared": {"block_share": True},
        "r": {"r": 4, "oft_block_size": 0},
        "coft": {"coft": True, "eps": 2e-2},
        "neumann": {"use_cayley_neumann": True},
        "neumann3": {"use_cayley_neumann": True, "num_cayley_neumann_terms": 3},
        "embedding": {"target_modules": ["embed_tokens"]},
        "fallback": {"oft_block_size": 7, "block_size_fallback": "nearest"},
        "bias": {"bias": "oft_only"},
    }
    beyond = {
        "side": {"side": "out"},
        "magnitude": {"magnitude": True},
        "scaled": {"scaled": True},
        "pattern": {"block_size_pattern": {"down_proj": 4}},
        "legacy": {"use_cayley_neumann": True, "neumann_series": "legacy"},
    }
    outputs = {}
    for name, changes in {**expressible, **beyond}.items():
        config = OFTConfig(**{"oft_block_size": 8, "target_modules": ["q_proj", "down_proj"], **changes})
        model = turn(get_peft_model(llama(mlp_bias=True), config), std=0.05).eval()
        model.save_pretrained(str(tmp_path / name))
        outputs[name] = model(ids).logits.detach()
    request = json.dumps([{**llama_fields, "mlp_bias": True}, [(name, str(tmp_path / name)) for name in outputs]])
    done = fresh_after_peft(STOCK, request)
    assert done.returncode == 0, done.stderr[-2000:]
    results = dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))
    for name in expressible:
        got = torch.tensor(results[name]).view_as(outputs[name])
        # float32 logits of size 1 through two layers, another order of summation
        torch.testing.assert_close(got, outputs[name], atol=2e-6, rtol=0)
    for name in beyond:
        assert results[name] == "KeyError('ORTHOTUNE')", (name, results[name][:100])


def test_adapted_convolutions_are_beyond_stock_peft(turn, tmp_path):
    """PEFT's un-merged 3x3 convolution is another map, so the file must not load there."""
    model = get_peft_model(nn.Sequential(nn.Conv2d(4, 4, 3)), OFTConfig(r=2, target_modules=["0"]))
    model.save_pretrained(str(tmp_path))
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] == "ORTHOTUNE" and config["needs_orthotune_for"] == ["convolutions"]
    one = get_peft_model(nn.Sequential(nn.Conv2d(4, 4, 1)), OFTConfig(r=2, target_modules=["0"]))
    one.save_pretrained(str(tmp_path / "one"))
    assert json.loads((tmp_path / "one" / "adapter_config.json").read_text())["peft_type"] == "OFT"


@pytest.mark.parametrize("name", ["exact", "neumann5", "coft", "block_share", "adjusted_bs5"])
def test_files_of_peft_0_21_give_pefts_own_outputs(name):
    folder = FIXTURES / "peft-0.21.2-oft" / name
    io = load_file(str(folder / "io.safetensors"))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin, self.conv = nn.Linear(24, 16), nn.Conv2d(8, 12, 3, padding=1)
            for layer, key in ((self.lin, "lin"), (self.conv, "conv")):
                layer.load_state_dict({k: io[f"{key}.{k}"] for k in ("weight", "bias")})

    model = PeftModel.from_pretrained(Net(), str(folder)).eval().base_model.model
    # float32, sums of 24 and 72 products of size 1
    torch.testing.assert_close(model.lin(io["lin.x"]), io["lin.y"], atol=3e-6, rtol=0)
    torch.testing.assert_close(model.conv(io["conv.x"]), io["conv.y_merged"], atol=1e-5, rtol=0)


def test_legacy_neumann_files_keep_their_polynomial():
    folder = FIXTURES / "peft-0.17.1-oft" / "neumann5"
    io = load_file(str(folder / "io.safetensors"))
    net = nn.Module()
    net.lin, net.conv = nn.Linear(24, 16), nn.Conv2d(8, 12, 3, padding=1)
    net.lin.load_state_dict({k: io[f"lin.{k}"] for k in ("weight", "bias")})
    lin = PeftModel.from_pretrained(net, str(folder)).eval().base_model.model.lin
    torch.testing.assert_close(lin(io["lin.x"]), io["lin.y"], atol=3e-6, rtol=0)  # float32 rounding


OLD = [
    "peft-0.8.2-oft/plain", "peft-0.8.2-oft/block_share", "peft-0.8.2-oft/coft", "peft-0.8.2-oft/ragged_r5",
    "peft-0.13.2-oft/plain", "peft-0.13.2-oft/block_share",
    "peft-0.15.2-oft/plain", "peft-0.15.2-oft/block_share", "peft-0.15.2-oft/block_size",
]  # fmt: skip


def _base(io):
    net = nn.Module()
    net.lin, net.conv = nn.Linear(24, 16), nn.Conv2d(8, 12, 3, padding=1)
    for key in ("lin", "conv"):
        net.get_submodule(key).load_state_dict({k: io[f"{key}.{k}"] for k in ("weight", "bias")})
    return net


@pytest.mark.filterwarnings("ignore:The adapter was trained with an older")
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("folder", OLD)
def test_older_layouts_give_their_own_outputs(folder, low_cpu_mem_usage):
    io = load_file(str(FIXTURES / folder / "io.safetensors"))
    model = PeftModel.from_pretrained(
        _base(io), str(FIXTURES / folder), low_cpu_mem_usage=low_cpu_mem_usage, torch_device="cpu"
    )
    inner = model.eval().base_model.model
    for key in ("lin", "conv"):
        layer = inner.get_submodule(key)
        # float32, sums of up to 72 products of size 1
        torch.testing.assert_close(layer(io[f"{key}.x"]), io[f"{key}.y"], atol=1e-5, rtol=0)
    merged = model.merge_and_unload()
    for key in ("lin", "conv"):
        torch.testing.assert_close(merged.get_submodule(key).weight, io[f"{key}.weight_merged"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("folder", ["peft-0.8.2-oft/plain", "peft-0.15.2-oft/plain"])
def test_older_layouts_are_saved_as_todays(folder, tmp_path):
    io = load_file(str(FIXTURES / folder / "io.safetensors"))
    PeftModel.from_pretrained(_base(io), str(FIXTURES / folder)).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "ORTHOTUNE"
    lin = PeftModel.from_pretrained(_base(io), str(tmp_path)).eval().base_model.model.lin
    torch.testing.assert_close(lin(io["lin.x"]), io["lin.y"], atol=1e-5, rtol=0)  # as above


@pytest.mark.parametrize("folder", ["peft-0.8.2-oft/plain", "peft-0.15.2-oft/plain"])
def test_an_adapter_from_an_older_file_takes_todays_tensors_again(folder, tmp_path):
    """As when a trainer goes back to a checkpoint; and the older file once more."""
    io = load_file(str(FIXTURES / folder / "io.safetensors"))
    model = PeftModel.from_pretrained(_base(io), str(FIXTURES / folder))
    model.save_pretrained(tmp_path)
    lin = model.eval().base_model.model.lin
    for source in (str(tmp_path), str(FIXTURES / folder)):
        with torch.no_grad():
            lin.oft_R["default"].weight.zero_()
        model.load_adapter(source, "default")
        torch.testing.assert_close(lin(io["lin.x"]), io["lin.y"], atol=1e-5, rtol=0)  # as above


def test_one_config_serves_several_models():
    folder = FIXTURES / "peft-0.8.2-oft/plain"
    io = load_file(str(folder / "io.safetensors"))
    config = OFTConfig.from_pretrained(str(folder))
    for _ in range(2):
        lin = PeftModel.from_pretrained(_base(io), str(folder), config=config).eval().base_model.model.lin
        torch.testing.assert_close(lin(io["lin.x"]), io["lin.y"], atol=1e-5, rtol=0)  # as above


def test_older_tensors_under_a_config_of_today_are_refused(tmp_path):
    folder = FIXTURES / "peft-0.13.2-oft/plain"
    io = load_file(str(folder / "io.safetensors"))
    (tmp_path / "adapter_model.safetensors").write_bytes((folder / "adapter_model.safetensors").read_bytes())
    fields = json.loads((folder / "adapter_config.json").read_text()) | {"use_cayley_neumann": False}
    (tmp_path / "adapter_config.json").write_text(json.dumps(fields | {"oft_block_size": 0}))
    with pytest.raises(AdapterFileError, match=r"tensors of PEFT before 0.16 \(key .*oft_r'\)"):
        PeftModel.from_pretrained(_base(io), str(tmp_path))


def test_another_base_is_named_with_both_shapes(saved, llama):
    with pytest.raises(AdapterFileError, match=r"4 of 4 rotations.*\(6, 28\) in the file.*\(8, 28\) for this"):
        PeftModel.from_pretrained(llama(hidden_size=64, intermediate_size=96), str(saved[0]))


def test_missing_layers_are_not_a_silent_identity(saved, llama):
    with pytest.raises(AdapterFileError, match="rotations that the file does not have"):
        PeftModel.from_pretrained(llama(num_hidden_layers=3), str(saved[0]))


def test_superfluous_layers_are_not_dropped_in_silence(saved, llama):
    with pytest.raises(AdapterFileError, match="rotations that the model does not have"):
        PeftModel.from_pretrained(llama(num_hidden_layers=1), str(saved[0]))


def test_nan_in_an_adapter_names_the_tensor(saved, llama):
    path = saved[0] / "adapter_model.safetensors"
    tensors = load_file(str(path))
    name = sorted(tensors)[0]
    tensors[name][0, 0] = float("nan")
    save_file(tensors, str(path))
    with pytest.raises(AdapterFileError, match=re.escape(name.removeprefix("base_model.model.").split("oft_R")[0])):
        PeftModel.from_pretrained(llama(), str(saved[0]))
