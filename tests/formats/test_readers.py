"""What no fixture holds: formats and cases that are read by their formulas."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from orthotune.errors import AdapterFileError, OrthotuneError
from orthotune.formats import LayerState, ReadOptions, read_adapter
from orthotune.rotation.cayley import cayley
from orthotune.rotation.frozen import Blocks, SplitRows
from orthotune.rotation.packing import pack
from orthotune.rotation.spec import RotationSpec
from tests.support.producers import FIXTURES


def _file(tmp_path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "a.safetensors", metadata)
    return tmp_path / "a.safetensors"


def _skew(*shape: int) -> Tensor:
    A = torch.randn(*shape)
    return 0.3 * (A - A.mT)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


PREFIXES = [
    "unet.down_blocks.0.attn.to_q", "transformer.blocks.0.to_q", "text_encoder.layers.0.q", "lora_unet_down_to_q",
    "lora_te1_text_model_layers_0_q", "diffusion_model.blocks.0.q", "text_encoders.clip_l.transformer.q",
    "down_blocks.0.attn.to_q", "lora_unet.down_blocks.0.to_q",
]  # fmt: skip


@pytest.mark.parametrize("prefix", PREFIXES)
def test_every_prefix_of_onetrainer(prefix: str, tmp_path: Path) -> None:
    path = _file(tmp_path, {f"{prefix}.oft_R.weight": torch.randn(3, 6)})
    state = read_adapter(path)
    assert (state.format, list(state.layers)) == ("onetrainer", [prefix])
    layer = state.layers[prefix]
    assert (layer.spec.map, layer.spec.terms, layer.spec.side, layer.conv_reversed) == ("neumann", 5, "in", True)


def test_sd_scripts_is_told_by_its_header(tmp_path: Path) -> None:
    tensors = {"lora_unet_a.oft_R.weight": torch.randn(3, 6), "lora_unet_a.oft_R.scaled_oft": torch.ones(())}
    plain = read_adapter(_file(tmp_path, tensors))
    kohya = read_adapter(_file(tmp_path, tensors, {"ss_network_module": "networks.oft_v2"}))
    assert (plain.format, kohya.format) == ("onetrainer", "kohya-oft-v2")
    # its loader ignores the marker, so the numbers mean more than OneTrainer's
    assert plain.layers["lora_unet_a"].spec.scaled
    assert not kohya.layers["lora_unet_a"].spec.scaled
    assert kohya.layers["lora_unet_a"].blend == "linear"


def test_the_ball_of_sd_scripts_is_in_its_arguments(tmp_path: Path) -> None:
    vector = torch.randn(4, 6)
    header = {"ss_network_module": "networks.oft_v2", "ss_network_args": json.dumps({"coft_eps": "0.1"})}
    state = read_adapter(_file(tmp_path, {"lora_unet_a.oft_R.weight": vector}, header))
    norms = torch.linalg.vector_norm(state.layers["lora_unet_a"].vector(), dim=1) * 2**0.5
    torch.testing.assert_close(norms, torch.full((4,), 0.1 / 2))


def test_settings_of_onetrainer_in_the_header(tmp_path: Path) -> None:
    header = {"ot_config": json.dumps({"oft_coft": True, "coft_eps": 0.1, "oft_block_share": True})}
    path = _file(tmp_path, {"lora_unet_a.oft_R.weight": torch.randn(1, 6)}, header)
    assert read_adapter(path).layers["lora_unet_a"].spec.eps == 0.1
    path = _file(tmp_path, {"lora_unet_a.oft_R.weight": torch.randn(2, 6)}, header)
    with pytest.raises(AdapterFileError, match="blocks are shared"):
        read_adapter(path)


def test_onetrainer_keeps_linear_layers_alone_within_the_ball(tmp_path: Path) -> None:
    path = _file(tmp_path, {"lora_unet_a.oft_R.weight": torch.randn(2, 6)})
    layer = read_adapter(path, ReadOptions(coft=True, eps=0.1)).layers["lora_unet_a"]
    assert layer.for_weight((3, 8)).spec.eps == 0.1
    assert layer.for_weight((3, 2, 2, 2)).spec.eps is None


def test_marker_of_any_type_means_scaled(tmp_path: Path) -> None:
    for marker in (torch.ones((), dtype=torch.bool), torch.ones(()).bfloat16(), torch.zeros(())):
        path = _file(tmp_path, {"a.oft_R.weight": torch.randn(2, 6), "a.oft_R.scaled_oft": marker})
        assert read_adapter(path).layers["a"].spec.scaled


def test_butterflies_of_sd_scripts_are_pefts(tmp_path: Path) -> None:
    A, s = torch.randn(2, 6, 4, 4), torch.rand(5, 1) + 0.5
    ours = read_adapter(_file(tmp_path, {"lora_unet_a.boft_R": A, "lora_unet_a.boft_s": s}))
    assert ours.format == "kohya-boft"
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "BOFT", "exclude_modules": null}')
    tensors = {"base_model.model.a.boft_R": A, "base_model.model.a.boft_s": s}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    peft, W = read_adapter(tmp_path), torch.randn(5, 24)
    # PEFT's is one that is trained, whose stages are multiplied out first: sums of the same numbers in another order.
    expected = peft.transform("a").apply(W)
    torch.testing.assert_close(ours.transform("lora_unet_a").apply(W), expected, rtol=0, atol=2e-6)
    # a strength is sd-scripts' own: half way in a straight line
    half = ours.transform("lora_unet_a").apply(W, 0.5)
    torch.testing.assert_close(half, (W + ours.transform("lora_unet_a").apply(W)) / 2)


def test_peft_weights_without_their_config_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterFileError, match=r"adapter_config\.json beside it"):
        read_adapter(_file(tmp_path, {"base_model.model.a.oft_R.weight": torch.randn(2, 6)}))


def test_a_file_in_a_peft_folder_finds_its_config() -> None:
    folder = FIXTURES / "peft-0.21.2-oft" / "exact"
    assert read_adapter(folder / "adapter_model.safetensors").format == "peft-oft"
    with pytest.raises(AdapterFileError, match="config alone"):
        read_adapter(folder / "adapter_config.json")


class TestFinishedRotations:
    """``oft_diag`` of LyCORIS 2.0."""

    def _read(self, tmp_path: Path, R: Tensor):
        return read_adapter(_file(tmp_path, {"lora_unet_a.oft_diag": R}))

    def _expected(self, R: Tensor, W: Tensor) -> Tensor:
        return torch.block_diag(*R).T @ W

    def test_rotations_become_skew_matrices(self, tmp_path: Path) -> None:
        R, W = cayley(_skew(3, 4, 4)), torch.randn(12, 5)
        state = self._read(tmp_path, R)
        assert list(state.layers) == ["lora_unet_a"]
        torch.testing.assert_close(state.transform("lora_unet_a").apply(W), self._expected(R, W), rtol=0, atol=1e-5)

    def test_a_scale_of_whole_blocks_is_a_scale_of_rows(self, tmp_path: Path) -> None:
        R, W = cayley(_skew(3, 4, 4)) * torch.tensor([0.5, 1.0, 2.0]).view(3, 1, 1), torch.randn(12, 5)
        state = self._read(tmp_path, R)
        assert state.layers["lora_unet_a"].magnitude is not None
        torch.testing.assert_close(state.transform("lora_unet_a").apply(W), self._expected(R, W), rtol=0, atol=1e-5)

    @pytest.mark.parametrize("kind", ["pi", "rows", "half precision"])
    def test_what_no_skew_matrix_says_is_applied_as_it_is(self, kind: str, tmp_path: Path) -> None:
        R, W = cayley(_skew(3, 4, 4)), torch.randn(12, 5)
        if kind == "pi":
            R[0] = torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0]))
        elif kind == "rows":
            R = torch.rand(3, 4, 1) * R + 0.1 * R
        else:
            R = R.bfloat16().float()
        state = self._read(tmp_path, R)
        assert isinstance(state.transforms["lora_unet_a"], Blocks)
        torch.testing.assert_close(state.transform("lora_unet_a").apply(W), self._expected(R, W), rtol=0, atol=1e-5)

    def test_development_builds_are_refused(self, tmp_path: Path) -> None:
        R = cayley(_skew(3, 4, 4))
        with pytest.raises(AdapterFileError, match="minus the identity"):
            self._read(tmp_path, R - torch.eye(4))
        with pytest.raises(AdapterFileError, match="is not a rotation.*norm of R Rᵀ"):
            self._read(tmp_path, torch.randn(3, 4, 4))


def test_fused_projections_with_blocks_of_one_size_are_one_rotation(tmp_path: Path) -> None:
    sizes, tensors = (8, 4, 4), {"oft_unet_qkv.alpha": torch.tensor(1e3)}
    parts = [torch.randn(size // 4, 4, 4) for size in sizes]
    tensors |= {f"oft_unet_qkv.oft_blocks.{i}": part for i, part in enumerate(parts)}
    state, W = read_adapter(_file(tmp_path, tensors)), torch.randn(16, 5)
    states = [LayerState({"": pack(part - part.mT)}, RotationSpec(side="out"), blend="rotation") for part in parts]
    expected = SplitRows(sizes, tuple(states)).apply(W, 0.5)
    torch.testing.assert_close(state.layers["oft_unet_qkv"].apply(W, 0.5), expected)


def test_a_part_of_a_fused_projection_that_is_missing(tmp_path: Path) -> None:
    tensors = {"oft_unet_qkv.oft_blocks.0": torch.randn(2, 4, 4), "oft_unet_qkv.oft_blocks.2": torch.randn(1, 4, 4)}
    with pytest.raises(AdapterFileError, match=r"parts \[0, 2\]"):
        read_adapter(_file(tmp_path, tensors))


@pytest.mark.parametrize(("prefix", "kept"), [("lora_unet_", True), ("oft_unet_", False)])
def test_alpha_of_nothing_clips_nothing_in_lycoris_and_all_in_sd_scripts(
    prefix: str, kept: bool, tmp_path: Path
) -> None:
    tensors = {f"{prefix}a.oft_blocks": torch.randn(2, 4, 4), f"{prefix}a.alpha": torch.tensor(0.0)}
    vector = read_adapter(_file(tmp_path, tensors)).layers[f"{prefix}a"].vector()
    assert bool(vector.norm() > 0.1) == kept
    assert kept or vector.norm() < 1e-7


def test_shared_blocks_of_the_original_need_their_program(tmp_path: Path) -> None:
    path = _file(tmp_path, {"to_q.R": torch.randn(4, 4)})
    with pytest.raises(AdapterFileError, match="project='oft-control'"):
        read_adapter(path)
    control, db = (read_adapter(path, ReadOptions(project=p)).layers["to_q"] for p in ("oft-control", "oft-db"))
    torch.testing.assert_close(control.rotation(), db.rotation().mT)


def test_what_oft_db_does_not_say_is_told() -> None:
    path = FIXTURES / "zeju-oft" / "oft-db_linear_coft" / "adapter.safetensors"
    assert any("COFT" in warning for warning in read_adapter(path).warnings)
    assert not read_adapter(path, ReadOptions(coft=False)).warnings
    with pytest.raises(AdapterFileError, match="Pass eps"):
        read_adapter(path, ReadOptions(coft=True))


def test_processors_are_called_as_their_projections() -> None:
    path = FIXTURES / "zeju-oft" / "oft-t2i_linear" / "adapter.safetensors"
    state = read_adapter(path)
    (name,) = state.layers
    assert name.endswith(".attn1.to_q")
    assert state.prefixes[name].endswith(".attn1.processor.to_q_oft")


def test_blocks_that_reach_past_the_weight() -> None:
    layer = read_adapter(FIXTURES / "peft-0.8.2-oft" / "ragged_r5").layers["lin"]
    assert not layer.runs_on(16)
    assert layer.runs_on(20)
    with pytest.raises(AdapterFileError, match="does not fit"):
        layer.runs_on(24)


def test_layers_that_do_not_fit_say_so() -> None:
    layer = LayerState({"": torch.zeros(3, 6)})
    for weight in (torch.zeros(4, 13), torch.zeros(4, 16), torch.zeros(4, 3, 2, 1)):
        with pytest.raises(AdapterFileError, match="does not fit a weight|does not fit"):
            layer.apply(weight)
    with pytest.raises(OrthotuneError, match="does not fit"):
        replace(layer, magnitude=torch.ones(3)).apply(torch.zeros(4, 12))


def test_embeddings_turn_as_the_layer_turns_them() -> None:
    from torch import nn

    from orthotune.layers.embedding import Embedding
    from orthotune.layers.settings import LayerSettings

    layer = Embedding(nn.Embedding(5, 12), "default", LayerSettings("emb", RotationSpec(4, magnitude=True)))
    with torch.no_grad():
        layer.rotations("default")[""].weight.normal_()
        layer.magnitude("default").uniform_(0.5, 2)
    vector, scale = layer.rotations("default")[""].weight.detach(), layer.magnitude("default").detach()
    state = LayerState({"": vector}, magnitude=scale, embedding=True)
    expected = layer(torch.arange(5)).detach()
    torch.testing.assert_close(state.apply(layer.get_base_layer().weight), expected, rtol=0, atol=1e-5)


def test_strength_blends_straight_where_the_home_tool_has_none() -> None:
    layer, W = LayerState({"": torch.randn(3, 6)}), torch.randn(4, 12)
    torch.testing.assert_close(layer.apply(W, 0.25), W + 0.25 * (layer.apply(W) - W))
    assert torch.equal(layer.apply(W, 0.0), W)


def test_half_precision_weights_are_computed_in_float32() -> None:
    layer = LayerState({"": torch.randn(3, 6).bfloat16()})
    assert layer.apply(torch.randn(4, 12).bfloat16()).dtype == torch.float32
    assert layer.apply(torch.randn(4, 12).double()).dtype == torch.float64


def test_float8_adapters_are_read(tmp_path: Path) -> None:
    tensors = load_file(FIXTURES / "onetrainer-oftv2-2026-08" / "plain" / "adapter_kohya.safetensors")
    path = _file(tmp_path, {name: tensor.to(torch.float8_e4m3fn) for name, tensor in tensors.items()})
    assert read_adapter(path).layers["lora_unet_blk_lin"].rotation().dtype == torch.float32


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_butterflies_gather_the_features_that_peft_gathers(stages: int, tmp_path: Path) -> None:
    from peft.tuners.boft.layer import BOFTLayer

    features, size = 64, 4
    A, W = torch.randn(stages, features // size, size, size), torch.randn(5, features)
    tensors = {"lora_unet_a.boft_R": A, "lora_unet_a.boft_s": torch.ones(5, 1)}
    found = read_adapter(_file(tmp_path, tensors)).transform("lora_unet_a").apply(W)
    layer, whole = BOFTLayer(torch.nn.Linear(features, 5)), torch.eye(features)
    for stage, R in enumerate(layer.cayley_batch(A.flatten(0, 1)).unflatten(0, A.shape[:2])):
        # as update_layer counts: factor 0 does not permute, later ones by blocks of half their number
        perm = layer.block_butterfly_perm(features, features // size // 2**stage, size // 2, stage)
        P = layer.perm2mat(perm)
        whole = P @ torch.block_diag(*R) @ P.T @ whole
    # float32 on both sides: 64 terms of about 1, four times
    torch.testing.assert_close(found, W @ whole.T, rtol=0, atol=2e-5)
