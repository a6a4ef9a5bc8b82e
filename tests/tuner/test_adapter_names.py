"""An adapter may have every name that torch takes as a key, beside others and beside layers of the same name."""

from __future__ import annotations

import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn

from orthotune import OFTConfig, get_peft_model, load_adapter
from orthotune.errors import ConfigError

NAMES = [
    "oft_R", "oft", "oft_magnitude", "oft_embedding_R", "oft_", "lin", "lin2", "weight", "bias", "model",
    "base_model", "base_layer", "modules_to_save", "original_module", "default", "default2", "a", "ab", "r", "q", "0",
]  # fmt: skip
REFUSED = sorted({name for kind in (nn.ModuleDict, nn.ParameterDict) for name in dir(kind({}))})


class Net(nn.Module):
    """Layers of every kind of parameter, called as adapters and their containers are."""

    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(7, 8)
        self.lin, self.lin2, self.soft_in = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.oft_R = nn.ModuleDict({"default": nn.Linear(8, 8), "weight": nn.Linear(8, 8)})
        self.mha = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head, self.head_oft_R = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, ids):
        x = self.lin2(self.lin(self.emb(ids)).tanh()).tanh()
        x = self.oft_R["weight"](self.oft_R["default"](self.soft_in(x).tanh()).tanh()).tanh()
        return self.head_oft_R(self.head(self.mha(x, x, x)[0]))


def net():
    torch.manual_seed(0)
    return Net().eval()


def config(**fields):
    targets = ["emb", "lin", "lin2", "soft_in", "oft_R.default", "oft_R.weight", "mha"]
    return OFTConfig(
        oft_block_size=4, target_modules=targets, modules_to_save=["head", "head_oft_R"], magnitude=True, **fields
    )


def fill(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


IDS = torch.arange(6).view(2, 3)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """One model with an adapter of every name, their outputs, and the folder that they are saved in."""
    model = get_peft_model(net(), config(), adapter_name=NAMES[0])
    for name in NAMES[1:]:
        model.add_adapter(name, config())
    outputs = {}
    with torch.no_grad():
        for seed, name in enumerate(NAMES):
            model.set_adapter(name)
            fill(model, seed)
            outputs[name] = model.eval()(IDS)
    folder = tmp_path_factory.mktemp("adapters")
    model.save_pretrained(str(folder))
    return model, outputs, folder


def folder_of(folder, name):
    return str(folder if name == "default" else folder / name)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("new", ["same", "other", "weight"])
def test_a_saved_adapter_loads_alone(many, name, new):
    _, outputs, folder = many
    new = name if new == "same" else new
    model = PeftModel.from_pretrained(net(), folder_of(folder, name), adapter_name=new).eval()
    assert torch.equal(model(IDS), outputs[name])
    other, _ = load_adapter(net(), folder_of(folder, name), adapter_name=new)
    assert torch.equal(other.eval()(IDS), outputs[name])


def test_every_file_has_the_same_keys(many):
    _, _, folder = many
    keys = {name: set(load_file(f"{folder_of(folder, name)}/adapter_model.safetensors")) for name in NAMES}
    assert all(keys[name] == keys["default"] for name in NAMES), {n: keys[n] ^ keys["default"] for n in NAMES}
    assert len(keys["default"]) == 6 * 2 + 4 + 4 + 1  # the attention has four rotations and one magnitude


def test_all_saved_adapters_load_into_one_model(many):
    _, outputs, folder = many
    model = PeftModel.from_pretrained(net(), folder_of(folder, NAMES[-1]), adapter_name=NAMES[-1])
    for name in NAMES[:-1]:
        model.load_adapter(folder_of(folder, name), name)
    for name in NAMES:
        model.set_adapter(name)
        assert torch.equal(model.eval()(IDS), outputs[name]), name


@pytest.mark.parametrize("name", NAMES)
def test_a_state_dict_goes_into_a_new_adapter(many, name):
    model, outputs, _ = many
    state = get_peft_model_state_dict(model, adapter_name=name)
    fresh = get_peft_model(net(), config(), adapter_name="b")
    fresh.add_adapter(name, config())
    set_peft_model_state_dict(fresh, state, adapter_name=name)
    fresh.set_adapter(name)
    assert torch.equal(fresh.eval()(IDS), outputs[name])


@pytest.mark.parametrize("name", NAMES)
def test_a_given_state_dict_is_read_whole_or_refused(many, name):
    """A copy of the whole state is not the model's own: no number of the model takes its place in silence."""
    model, _, _ = many
    state = {key: tensor + 1 for key, tensor in model.state_dict().items()}
    want = {key: tensor + 1 for key, tensor in get_peft_model_state_dict(model, adapter_name=name).items()}
    try:
        found = get_peft_model_state_dict(model, state_dict=state, adapter_name=name)
    except Exception as error:
        assert "state_dict" in str(error) and "adapter" in str(error)
    else:
        assert found.keys() == want.keys() and all(torch.equal(found[key], want[key]) for key in want)


def test_strength_and_deletion_reach_the_named_adapter_alone(many):
    _, outputs, folder = many
    model = PeftModel.from_pretrained(net(), folder_of(folder, NAMES[0]), adapter_name=NAMES[0])
    for name in NAMES[1:]:
        model.load_adapter(folder_of(folder, name), name)
    left = list(NAMES)
    for name in NAMES[:-1]:
        model.base_model.set_scale(name, 0.5)
        model.delete_adapter(name)
        left.remove(name)
        assert not [key for key, layer in model.named_modules() if name in getattr(layer, "oft_settings", {})]
        model.set_adapter(left[0])
        assert torch.equal(model.eval()(IDS), outputs[left[0]]), (name, left[0])


@pytest.mark.parametrize("name", [*REFUSED, "a.b", "", "a/b"])
def test_a_name_that_torch_cannot_take_is_refused_before_anything_changes(name):
    model = net()
    before = [key for key, _ in model.named_modules()]
    with pytest.raises(ConfigError, match="adapter_name"):
        get_peft_model(model, config(), adapter_name=name)
    assert [key for key, _ in model.named_modules()] == before
    second = get_peft_model(net(), config())
    keys = list(second.state_dict())
    with pytest.raises(ConfigError, match="adapter_name"):
        second.add_adapter(name, config())
    assert list(second.state_dict()) == keys and list(second.peft_config) == ["default"]


@pytest.mark.parametrize("name", NAMES)
def test_a_new_adapter_leaves_the_trainability_of_the_others(name):
    model = get_peft_model(net(), config())
    for parameter in model.base_model.model.head.parameters():
        parameter.requires_grad_(True)
    before = {key: parameter.requires_grad for key, parameter in model.named_parameters()}
    model.add_adapter(f"{name}_new" if name == "default" else name, config())
    after = {key: parameter.requires_grad for key, parameter in model.named_parameters() if key in before}
    assert after == before


@pytest.mark.parametrize("first, second", [("head", "a"), ("a", "head"), ("a", "my_head"), ("new_head_oft_R", "a")])
def test_the_name_of_a_module_that_is_saved_whole_is_refused_in_words(first, second):
    """PEFT's host takes the rotations of such an adapter for the module to save."""
    model = net()
    saving = {"a": config(), "head": config(), "my_head": config(), "new_head_oft_R": config()}
    keys = list(model.state_dict())
    try:
        model = get_peft_model(model, saving[first], adapter_name=first)
    except ConfigError as error:
        assert "modules_to_save" in str(error) and list(model.state_dict()) == keys
        return
    keys = list(model.state_dict())
    with pytest.raises(ConfigError, match="modules_to_save"):
        model.add_adapter(second, saving[second])
    assert list(model.state_dict()) == keys


def test_a_module_that_an_earlier_adapter_is_called_as_is_not_saved_whole():
    model = get_peft_model(net(), OFTConfig(oft_block_size=4, target_modules=["lin"]), adapter_name="head")
    with pytest.raises(ConfigError, match="modules_to_save"):
        model.add_adapter("a", config())


#: names that are contained in "oft_", what PEFT's parameters of OFT begin with
CONTAINED = ["o", "f", "t", "_", "of", "ft", "t_", "oft", "ft_", "oft_"]


@pytest.mark.parametrize("name", CONTAINED)
def test_a_name_within_the_prefix_is_right_and_not_warned_about(name, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        first = get_peft_model(net(), config(), adapter_name=name)
        second = get_peft_model(net(), config())
        second.add_adapter(name, config())
        second.set_adapter(name)
        for model in (first, second):
            fill(model, 1)
            expected = model.eval()(IDS)
            model.save_pretrained(str(tmp_path))
            again = PeftModel.from_pretrained(net(), folder_of(tmp_path, name), adapter_name=name).eval()
            assert torch.equal(again(IDS), expected)


def test_pefts_own_methods_keep_their_warning():
    with pytest.warns(UserWarning, match="should not be contained in the prefix 'lora_'"):
        get_peft_model(nn.Sequential(nn.Linear(4, 4)), LoraConfig(r=2, target_modules=["0"]), adapter_name="lora")


@pytest.mark.parametrize("name", [*NAMES, *CONTAINED])
def test_transformers_own_loading_and_saving_takes_every_name(llama, ids, turn, tmp_path, name):
    fields = {"oft_block_size": 8, "target_modules": ["q_proj", "embed_tokens"], "magnitude": True}
    model = llama()
    model.add_adapter(OFTConfig(**fields), adapter_name=name)
    expected = turn(model)(ids).logits
    model.save_pretrained(str(tmp_path))
    again = llama()
    found = again.load_adapter(str(tmp_path), adapter_name=name)
    # transformers finds an adapter's keys by its name as text, and so reports weights of the base as missing
    assert not [key for key in found.missing_keys if "oft_" in key] and not found.unexpected_keys
    assert torch.equal(again(ids).logits, expected)
