"""What quantized layers share, on the smallest library."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from orthotune import OFTConfig, get_peft_model, merge_aware, set_scale
from orthotune.errors import MergeError, OrthotuneError
from orthotune.layers.base import OFTLayer
from orthotune.layers.plan import explain
from orthotune.quantized import registry
from orthotune.runs.adapters import trainable
from orthotune.tuner.first_step import keep_float32
from tests.quantized.adapter_checks import ADAPTER_CHECKS, check_a_wrong_write_is_undone
from tests.quantized.layer_checks import CHECKS, Subject, check_files
from tests.quantized.toy import TOYS, FixedLinear, InferenceLinear, RoundedLibrary, RoundedLinear
from tests.support.after_peft import Run
from tests.support.contract_cases import randomize


@pytest.fixture(autouse=True)
def _toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "LIBRARIES", [*TOYS, *registry.LIBRARIES])


SUBJECTS = [
    Subject("toy", RoundedLinear, "rounded", 8, product=1e-6),
    Subject("toy-bfloat16", RoundedLinear, "rounded", 8, dtype=torch.bfloat16, product=8e-3),
    Subject("toy-inference", InferenceLinear, "rounded", 8, product=1e-6),
    Subject("fixed", FixedLinear, "rounded", 8, product=1e-6, merges="numbers that nobody can round again"),
]


@pytest.mark.parametrize("check", CHECKS + ADAPTER_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("subject", SUBJECTS, ids=str)
def test_layer(subject: Subject, check: Callable[[Subject], None]) -> None:
    check(subject)


def test_files(tmp_path: Path) -> None:
    check_files(SUBJECTS[0], tmp_path)


def test_a_wrong_write_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    check_a_wrong_write_is_undone(SUBJECTS[0], monkeypatch)


def test_a_merge_aware_forward_is_repeated_under_the_same_adapters() -> None:
    model, x = SUBJECTS[0].model().train(), SUBJECTS[0].x().requires_grad_()
    merge_aware(model)
    y = checkpoint(model, x, use_reentrant=False)
    set_scale(model, "default", 0.5)
    with pytest.raises(OrthotuneError, match="run again under default at strength 0.5"):
        y.sum().backward()


def test_explain_says_that_a_layer_is_merge_aware() -> None:
    model = SUBJECTS[0].model()
    layer = next(module for module in model.modules() if isinstance(module, OFTLayer))
    assert "merge-aware" not in explain(layer)
    merge_aware(model)
    assert "merge-aware: the adapted weight is quantized in every call" in explain(layer)


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(12, 16), RoundedLinear(nn.Linear(16, 8)), nn.Tanh(), FixedLinear(nn.Linear(8, 20, bias=False)),
        nn.Linear(20, 4),
    )  # fmt: skip


def _adapted(**options: object) -> nn.Module:
    model = get_peft_model(_net(), OFTConfig(oft_block_size=4, **options))
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.2)
    return model


@pytest.mark.parametrize("targets", [["1"], ["0", "1"]])
def test_what_runs_in_inference_mode_may_stand_before_what_learns(targets: list[str]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(InferenceLinear(nn.Linear(8, 12)), nn.Linear(12, 4))
    model = get_peft_model(net, OFTConfig(oft_block_size=4, target_modules=targets)).eval()
    model(torch.randn(3, 8)).sum().backward()
    assert model.base_model.model[1].oft_R["default"].weight.grad.abs().max() > 0
    with torch.inference_mode():
        assert model(torch.randn(3, 8)).is_inference()


def test_threads_call_one_hooked_layer() -> None:
    model = _adapted(target_modules=["1"]).eval()
    layer = model.base_model.model[1]
    layer.get_base_layer().register_forward_pre_hook(lambda *_: time.sleep(0.01))  # another thread comes meanwhile
    inputs = [torch.randn(3, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    with torch.no_grad():
        expected = [layer(x) for x in inputs]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda x: layer(x).detach(), inputs * 3))
    for one, other in zip(found, expected * 3, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)  # R with or without a graph, float32


def test_all_linear_finds_quantized_layers() -> None:
    model = _adapted(target_modules="all-linear")
    assert set(model.peft_config["default"].target_modules) == {"0", "1", "3", "4"}


def test_one_layer_that_cannot_merge_stops_all() -> None:
    model, x = _adapted(target_modules=["1", "3"]).eval(), torch.randn(3, 12)
    y = model(x)
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(MergeError, match=r"Cannot merge OFT layers when the model is toy quantized: layer '3'"):
            merge()
    assert torch.equal(model(x), y)
    assert not model.base_model.model[1].merged


def test_a_write_that_fails_in_a_later_layer_leaves_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(RoundedLinear(nn.Linear(8, 8)), RoundedLinear(nn.Linear(8, 8)))
    model = get_peft_model(net, OFTConfig(oft_block_size=4, target_modules=["0", "1"], init_weights=False)).eval()
    x, layers = torch.randn(3, 8), list(model.base_model.model)
    y, write = model(x), RoundedLibrary.requantize

    def fails_later(self: RoundedLibrary, module: nn.Module, weight: torch.Tensor) -> None:
        write(self, module, weight if module is layers[0].base_layer else weight.T)

    monkeypatch.setattr(RoundedLibrary, "requantize", fails_later)
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(MergeError, match="layer '1' .* Nothing was changed"):
            merge()
        assert list(model.base_model.model) == layers and not any(layer.merged for layer in layers)
        assert torch.equal(model(x), y)


def test_a_dense_model_has_no_quantized_layer_left_adapted_or_not() -> None:
    model, x = _adapted(target_modules=["0", "3"]).eval(), torch.randn(3, 12)
    y = model(x)
    dense = model.merge_and_unload(dequantize=True)
    assert all(type(dense[i]) is nn.Linear for i in (0, 1, 3, 4))
    # Merged weights are rounded to float32 once more, and products are summed in another order.
    torch.testing.assert_close(dense(x), y, rtol=1e-5, atol=1e-6)


def test_a_dense_model_keeps_what_is_merged_already() -> None:
    model, x = _adapted(target_modules=["1"]).eval(), torch.randn(3, 12)
    y = model(x)
    model.merge_adapter()
    torch.testing.assert_close(model.merge_and_unload(dequantize=True)(x), y, rtol=1e-5, atol=1e-6)


def test_dense_layers_have_the_dtype_of_the_rest() -> None:
    model = get_peft_model(_net().bfloat16(), OFTConfig(oft_block_size=4, target_modules=["1"]))
    assert model.merge_and_unload(dequantize=True)[1].weight.dtype == torch.bfloat16


def test_a_layer_in_two_places_is_adapted_and_merged_in_both() -> None:
    shared = RoundedLinear(nn.Linear(8, 8))
    net = nn.ModuleDict({"a": nn.Sequential(shared), "b": nn.Sequential(shared)})
    model = get_peft_model(net, OFTConfig(oft_block_size=4, target_modules=["a.0"]))
    randomize(model)
    x, inner = torch.randn(2, 8), model.base_model.model
    with model.disable_adapter():
        plain = inner["a"](x)
    both = inner["a"](x)
    assert torch.equal(inner["b"](x), both) and not torch.allclose(both, plain, atol=1e-3)
    model.merge_adapter()
    assert torch.equal(inner["a"](x), inner["b"](x))
    model.unmerge_adapter()
    dense = model.merge_and_unload(dequantize=True)
    assert dense["a"][0] is dense["b"][0]
    torch.testing.assert_close(dense["a"](x), both, rtol=1e-5, atol=1e-6)


def test_the_librarys_forward_comes_back_on_unloading() -> None:
    net = _net()
    quantized = [net[1], net[3]]
    model = get_peft_model(net, OFTConfig(oft_block_size=4, target_modules=["1"]))
    assert all("forward" in vars(layer) for layer in quantized)
    model.unload()
    assert not any("forward" in vars(layer) for layer in quantized)


def test_modules_to_save_and_checkpoints_of_a_quantized_base(tmp_path: Path) -> None:
    from orthotune import PeftModel

    model = _adapted(target_modules=["1", "3"], modules_to_save=["4"]).eval()
    x = torch.randn(3, 12)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(_net(), tmp_path).eval()
    assert torch.equal(again(x), model(x))


def test_rotations_that_a_trainer_made_bfloat16_are_float32_again() -> None:
    model = _adapted(target_modules=["1"])
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    assert keep_float32(model) == 1
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


def test_the_first_training_step_gives_float32_back_before_an_optimizer_sees_them() -> None:
    model = _adapted(target_modules=["1"]).train()
    learning = [p for p in model.parameters() if p.requires_grad]
    for parameter in learning:
        parameter.data = parameter.data.bfloat16()
    optimizer = torch.optim.AdamW(learning, lr=1e-5)  # far below bfloat16's steps near 0.2
    before = [p.detach().float().clone() for p in learning]
    model(torch.randn(3, 12)).square().sum().backward()
    optimizer.step()
    assert all(p.dtype == torch.float32 and not torch.equal(p, b) for p, b in zip(learning, before, strict=True))


def test_importing_the_package_imports_no_library(fresh_after_peft: Run) -> None:
    names = "bitsandbytes gptqmodel awq aqlm eetq hqq torchao optimum neural_compressor"
    # A name that raises on import: what a broken optional package does.
    code = (
        "import sys, peft; had = set(sys.modules)\n"
        "class Broken:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {names.split()!r}: raise RuntimeError('broken ' + name)\n"
        "sys.meta_path.insert(0, Broken())\n"
        "import orthotune, torch\n"
        "from orthotune import OFTConfig, get_peft_model\n"
        "get_peft_model(torch.nn.Sequential(torch.nn.Linear(8, 8)), OFTConfig(oft_block_size=4, target_modules=['0']))"
    )
    done = fresh_after_peft(code)
    assert done.returncode == 0, done.stderr


def test_a_quantized_weight_counts_as_many_parameters_as_it_had() -> None:
    plain = (12 + 1) * 16 + (16 + 1) * 8 + 8 * 20 + (20 + 1) * 4
    assert trainable(_net())[1] == plain
    adapted = get_peft_model(_net(), OFTConfig(oft_block_size=4, target_modules="all-linear"))
    trained, total = trainable(adapted)
    assert (trained, total) == (trained, plain + trained) and trained > 0
