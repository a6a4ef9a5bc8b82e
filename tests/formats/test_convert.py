"""What is written for another tool and read back turns as before; what cannot be is refused with the reason."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from orthotune.errors import ConfigError, OrthotuneError, UnsupportedLayerError
from orthotune.formats import AdapterState, LayerState, ReadOptions, read_adapter
from orthotune.formats.convert import convert, plan
from orthotune.formats.registry import targets
from orthotune.formats.writers import write_adapter
from orthotune.rotation.reflections import Reflections
from orthotune.rotation.spec import RotationSpec
from tests.support.producers import Produced, base_layer, produced

#: Modules of a model that every layer of the fixtures can mean.
MODULES = {"": ["blk.lin", "blk.conv", "lin", "conv", "to_q", "in_layers", "double_blocks.0.img_attn.qkv"]}


def _weights(case: Produced, state: AdapterState) -> dict[str, torch.Tensor]:
    io = load_file(case.folder / "io.safetensors")
    return {n: io[f"{base_layer(n, case)}.weight"].double() for n in (*state.layers, *state.transforms)}


def _pairs() -> list[tuple[Produced, str]]:
    """Every adapter with every tool that can hold it as it is; a second file of the same numbers adds nothing."""
    found = []
    for case in produced():
        if "_kohya" in case.adapter.name:
            continue
        state = case.read()
        shapes = {name: weight.shape for name, weight in _weights(case, state).items()}
        found += [(case, target) for target in targets() if plan(state, target, shapes).verdict == "lossless"]
    return found


def _modules(case: Produced) -> dict[str, list[str]]:
    if "zeju" not in case.producer or "control" in case.folder.name:
        return MODULES
    return {"": list(case.read().layers)}


@pytest.mark.parametrize(("case", "target"), _pairs(), ids=str)
def test_a_lossless_pair_turns_weights_as_before(case: Produced, target: str, tmp_path: Path) -> None:
    state = case.read()
    weights = _weights(case, state)
    converted, errors = convert(state, target, {name: weight.shape for name, weight in weights.items()})
    assert not errors
    out = tmp_path / ("adapter" if targets()[target].folder else "adapter.safetensors")
    write_adapter(converted, out, target, _modules(case))
    back = read_adapter(out)
    turned = {_bare(name): back.transform(name) for name in (*back.layers, *back.transforms)}
    assert len(turned) == len(weights)
    for name, weight in weights.items():
        expected, found = state.transform(name).apply(weight), turned[_bare(name)].apply(weight)
        # float64 weights of about 1; the vectors are float32 on both sides, and halves and negatives are exact
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def _bare(name: str) -> str:
    return name.replace(".", "_").rpartition("_")[2]


def test_most_pairs_are_written() -> None:
    pairs = _pairs()
    # every producer but that of split rows, and those of BOFT with the legacy convolution layout
    assert len({case.producer for case, _ in pairs}) == len({case.producer for case in produced()}) - 3
    # PEFT's other methods have transforms of their own: test_stock_transforms.py
    assert {target for _, target in pairs} == set(targets()) - {"peft-hra", "peft-road", "peft-psoft"}


def _one(layer: LayerState, **fields: Any) -> AdapterState:
    return AdapterState({"lin": _with(layer, **fields)})


def _with(layer: LayerState, **fields: Any) -> LayerState:
    """The layer with other fields, those of its spec included."""
    of_spec = {name: fields.pop(name) for name in ("side", "map") if name in fields}
    return replace(layer, spec=replace(layer.spec, **of_spec), **fields)


IN = LayerState({"": torch.full((3, 6), 0.05)})


@pytest.mark.parametrize(
    ("state", "target", "reason"),
    [
        (_one(IN), "lycoris", "distinct singular values"),
        (_one(IN, side="out"), "peft", "distinct singular values"),
        (_one(IN, magnitude=torch.full((5,), 2.0)), "peft", "scale of the rows"),
        (_one(IN, side="out", magnitude=torch.full((12,), 2.0)), "kohya-oft", "scale of the rows"),
        (_one(IN, map="neumann"), "peft-0.14", "another map.*--approximate"),
        (_one(IN, map="neumann_legacy"), "onetrainer", "another map.*--approximate"),
        (_one(IN, map="neumann"), "onetrainer", "which layers are convolutions.*--base"),
        (_one(IN), "peft-0.14", "how many rows.*--base"),
        (_one(IN, side="out", magnitude=torch.full((12,), 2.0)), "comfyui", "which layers are those.*--base"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(state: AdapterState, target: str, reason: str) -> None:
    with pytest.raises(UnsupportedLayerError, match=reason):
        convert(state, target)


def test_a_scale_of_ones_is_none(tmp_path: Path) -> None:
    state = _one(IN, magnitude=torch.ones(5))
    assert plan(state, "peft").verdict == "lossless"
    write_adapter(convert(state, "peft")[0], tmp_path / "a", "peft")
    assert read_adapter(tmp_path / "a").layers["lin"].magnitude is None


def test_layers_that_differ_have_settings_of_their_own(tmp_path: Path) -> None:
    layers = {"a.x": IN, "a.y": _with(IN, side="out", magnitude=torch.rand(12)), "a.z": _with(IN, map="neumann")}
    converted, _ = convert(AdapterState(layers), "orthotune")
    write_adapter(converted, tmp_path / "out", "orthotune")
    back = read_adapter(tmp_path / "out").layers
    for name, layer in layers.items():
        weight = torch.randn(12, 12)
        assert torch.equal(back[name].apply(weight), layer.apply(weight))


def test_blocks_that_may_be_cut_are_noted_without_the_base() -> None:
    state = _one(IN, side="out", truncated=True)
    assert plan(state, "lycoris").notes
    assert not plan(state, "lycoris", {"lin": (12, 4)}).notes
    assert plan(state, "lycoris", {"lin": (11, 4)}).verdict == "impossible"


def test_unknown_targets_are_named() -> None:
    with pytest.raises(ConfigError, match="Did you mean comfyui"):
        plan(_one(IN), "comfy")


@pytest.mark.parametrize("map", ["neumann", "neumann_legacy"])
@pytest.mark.parametrize("size", [0.01, 0.1])
def test_the_error_of_an_approximation_is_the_one_that_is_told(map: str, size: float) -> None:
    torch.manual_seed(0)
    state = _one(IN, rotations={"": size * torch.randn(3, 6)}, map=map)
    converted, errors = convert(state, "peft-0.14", {"lin": (5, 12)}, approximate=True)
    layer, before = converted.layers["lin"], state.layers["lin"]
    assert layer.spec.map == "exact"
    difference = torch.linalg.matrix_norm(layer.rotation().double() - before.rotation().double(), ord=2).max()
    # both are rounded to float32 once more here
    assert float(difference) == pytest.approx(errors["lin"], abs=1e-6)
    # the series leave the rotations with the fourth power of the skew matrix (the third order is in both)
    norm = torch.linalg.matrix_norm(unit_skew(before), ord=2).max() ** 4
    assert errors["lin"] < 2 * float(norm) + 1e-6


def unit_skew(layer: LayerState) -> torch.Tensor:
    from orthotune.rotation.packing import unpack

    return unpack(layer.vector(), layer.block_size()).double()


def test_exact_rotations_become_a_series_of_the_opposite_sign() -> None:
    state = _one(IN, rotations={"": 0.01 * torch.ones(3, 6)})
    converted, errors = convert(state, "onetrainer", {"lin": (5, 12)}, approximate=True)
    weight = torch.eye(12)
    assert errors["lin"] < 1e-5
    found = converted.layers["lin"].apply(weight)
    torch.testing.assert_close(found, state.layers["lin"].apply(weight), rtol=0, atol=1e-5)  # the error itself


def test_convolutions_change_direction_between_peft_and_onetrainer(tmp_path: Path) -> None:
    state = _one(IN, map="neumann")
    for shape in ((5, 12), (5, 3, 2, 2)):
        weight = torch.randn(shape)
        converted, _ = convert(state, "onetrainer", {"lin": shape})
        back = read_adapter(write_adapter(converted, tmp_path / "a.safetensors", "onetrainer"))
        (name,) = back.layers
        torch.testing.assert_close(back.layers[name].apply(weight), state.layers["lin"].apply(weight))


@pytest.mark.parametrize(("count", "packed"), [(4, 6), (4, 3), (5, 6)])
def test_a_scale_goes_into_a_butterfly_for_comfyui(count: int, packed: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = LayerState({"": torch.randn(count, packed)}, RotationSpec(side="out"), dims=2)
    layer = replace(layer, magnitude=torch.rand(count * layer.block_size()) + 0.5)
    state = AdapterState({"lin": layer})
    back = read_adapter(write_adapter(state, tmp_path / "a.safetensors", "comfyui"))
    assert back.format == "lycoris-boft"
    weight = torch.randn(count * layer.block_size(), 3)
    # rotations of float32, whose rounding is 6e-8 for each of the 4 terms of a sum
    expected = state.layers["lin"].apply(weight)
    torch.testing.assert_close(back.transforms["lora_unet_lin"].apply(weight), expected, rtol=0, atol=2e-6)


def test_odd_blocks_of_an_odd_number_are_refused_with_a_scale(tmp_path: Path) -> None:
    layer = LayerState({"": torch.randn(5, 3)}, RotationSpec(side="out"), dims=2, magnitude=torch.full((15,), 2.0))
    with pytest.raises(UnsupportedLayerError, match="5 blocks of size 3.*even size or number"):
        write_adapter(AdapterState({"lin": layer}), tmp_path / "a.safetensors", "comfyui")


def test_lycoris_gets_butterflies_where_its_loader_would_choose_other_blocks(tmp_path: Path) -> None:
    state = AdapterState({"lin": LayerState({"": torch.randn(2, 28)}, RotationSpec(side="out"))})
    write_adapter(state, tmp_path / "a.safetensors", "lycoris")
    assert load_file(tmp_path / "a.safetensors")["lycoris_lin.oft_blocks"].shape == (2, 2, 8, 8)
    odd = AdapterState({"lin": LayerState({"": torch.randn(3, 28)}, RotationSpec(side="out"))})
    with pytest.raises(UnsupportedLayerError, match="3 blocks of 8"):
        write_adapter(odd, tmp_path / "b.safetensors", "lycoris")
    assert not (tmp_path / "b.safetensors").exists()


def test_alpha_is_one_for_all_layers_and_clips_in_no_tool(tmp_path: Path) -> None:
    layers = {
        "a": LayerState({"": torch.randn(4, 6)}, RotationSpec(side="out")),
        "b": LayerState({"": torch.randn(4, 3)}, RotationSpec(side="out")),
    }
    for target in ("lycoris", "kohya-oft", "comfyui"):
        tensors = load_file(write_adapter(AdapterState(layers), tmp_path / f"{target}.safetensors", target))
        alphas = {float(t) for name, t in tensors.items() if name.endswith(".alpha")}
        assert len(alphas) == 1
        norms = [torch.linalg.vector_norm(t - t.mT) for name, t in tensors.items() if name.endswith(".oft_blocks")]
        assert alphas.pop() > max(norms)


def test_names_and_header_are_the_tools(tmp_path: Path) -> None:
    from safetensors import safe_open

    case = next(case for case in produced() if str(case).startswith("lycoris-3.0.0-diag_constraint"))
    for target, prefix, module in (
        ("kohya-oft", "oft_unet_", "networks.oft"),
        ("comfyui", "lora_unet_", "lycoris.kohya"),
    ):
        out = tmp_path / f"{target}.safetensors"
        write_adapter(convert(case.read(), target)[0], out, target)
        with safe_open(out, "pt") as file:
            assert all(name.startswith(prefix) for name in file.keys())  # noqa: SIM118
            assert file.metadata()["ss_network_module"] == module
            assert file.metadata()["sshs_model_hash"]


def test_peft_reads_the_series_that_was_written(tmp_path: Path) -> None:
    for target, map in (("peft", "neumann"), ("peft-0.16", "neumann_legacy")):
        write_adapter(_one(IN, map=map), tmp_path / target, target)
        assert read_adapter(tmp_path / target).layers["lin"].spec.map == map


def test_names_that_need_the_base_say_so(tmp_path: Path) -> None:
    state = AdapterState({"lora_unet_a_b": IN})
    with pytest.raises(OrthotuneError, match="underscores instead of dots.*--base"):
        write_adapter(state, tmp_path / "out", "peft")
    with pytest.raises(UnsupportedLayerError, match="1 of 1 layers.*modules of the base"):
        write_adapter(state, tmp_path / "out", "peft", {"": ["x.y"]})
    assert not (tmp_path / "out").exists()
    write_adapter(state, tmp_path / "out", "peft", {"": ["a.b"]})
    assert list(read_adapter(tmp_path / "out").layers) == ["a.b"]


def test_boft_of_older_peft_can_be_chosen(tmp_path: Path) -> None:
    folder = next(c for c in produced() if str(c).startswith("peft-0.13.2-boft-m1_bs4")).folder
    weight = torch.randn(12, 8, 3, 3)
    old, new = read_adapter(folder), read_adapter(folder, ReadOptions(boft_conv="rows"))
    assert (old.format, new.format) == ("peft-boft-0.11", "peft-boft")
    assert not torch.allclose(old.transform("conv").apply(weight), new.transform("conv").apply(weight))


def test_rotated_channels_become_blocks_over_the_kernel(tmp_path: Path) -> None:
    """For tools that know no rotation of channels: each block once for every point of a kernel, the same weight."""
    spec = RotationSpec(conv="channels", scaled=True)
    torch.manual_seed(0)
    weight = torch.randn(5, 6, 2, 3, dtype=torch.float64)
    shared = LayerState({"": torch.randn(1, 3)}, replace(spec, shared=True))
    for held in (LayerState({"": torch.randn(2, 3)}, spec), shared):
        state = AdapterState({"blk.conv": held})
        for target in ("peft", "peft-0.14", "orthotune"):
            converted, errors = convert(state, target, {"blk.conv": weight.shape})
            write_adapter(converted, tmp_path / target, target, {"": ["blk.conv"]})
            back = read_adapter(tmp_path / target).layers["blk.conv"]
            assert not errors and (back.spec.conv == "channels") == (target == "orthotune")
            # float32 vectors that were scaled and unscaled
            torch.testing.assert_close(back.apply(weight), held.apply(weight), rtol=0, atol=1e-6)


def test_what_is_needed_to_repeat_blocks_over_a_kernel() -> None:
    layer = LayerState({"": torch.zeros(2, 3)}, RotationSpec(conv="channels"))
    state = AdapterState({"conv": layer})
    assert "sizes of kernels" in next(iter(plan(state, "peft").needs_base))
    assert not plan(state, "peft", linear=True).needs_base and not plan(state, "orthotune").needs_base
    assert convert(state, "peft", linear=True)[0].layers["conv"].spec.conv == "kernel"
    with pytest.raises(UnsupportedLayerError, match="needed|base"):
        convert(state, "peft")
    family = Reflections(RotationSpec(transform="reflections", rank=2, conv="channels"), torch.ones(2, 6))
    for shape, verdict in (((5, 6, 2), "impossible"), ((5, 6, 1), "lossless")):
        found = plan(AdapterState({}, transforms={"conv": family}), "peft-hra", {"conv": shape})
        assert found.verdict == verdict
