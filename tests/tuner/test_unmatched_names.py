"""Every name, key and index of a config that fits nothing is warned about once, with the nearest names."""

from __future__ import annotations

import json
import warnings

import pytest
from peft import PeftModel

from orthotune import OFTConfig, get_peft_model

#: field -> a value of which a part fits nothing, and words of the warning
WRONG = {
    "rank_pattern": ({"q_prj": 4, "v_proj": 4}, ["'q_prj'", "q_proj"]),
    "block_size_pattern": ({"q_prj": 4}, ["'q_prj'", "q_proj"]),
    "block_size_pattern, shadowed": ({"q_proj": 4, "layers.0.self_attn.q_proj": 2}, ["layers.0.self_attn.q_proj"]),
    "block_size_pattern, not adapted": ({"o_proj": 4}, ["'o_proj'"]),
    "layer_settings": ({"model.layers.0.self_attn.q_prj": {"block_size": 4}}, ["q_prj", "q_proj"]),
    "layer_settings, no whole name": ({"q_proj": {"block_size": 4}}, ["'q_proj'"]),
    "exclude_modules": (["lm_hed"], ["'lm_hed'", "lm_head"]),
    "exclude_modules, regex": (r".*\.no_such", ["no_such"]),
    "modules_to_save": (["lm_hed", "norm"], ["'lm_hed'", "lm_head"]),
    "layers_to_transform": ([0, 7], ["7", "0 to 1"]),
    "layers_pattern": (["layers", "laers"], ["laers"]),
    "target_parameters": (["no_such.weight"], ["no_such.weight"]),
    "layers_to_transform, regex": ([0], ["regular expression"]),
}
RIGHT = [
    {"block_size_pattern": {"q_proj": 4, r"layers\.1\..*v_proj": 2}}, {"rank_pattern": {"v_proj": 4}},
    {"layer_settings": {"model.layers.0.self_attn.q_proj": {"block_size": 4}}}, {"exclude_modules": ["lm_head"]},
    {"exclude_modules": r".*\.0\..*"}, {"modules_to_save": ["lm_head"]}, {"layers_to_transform": [0, 1]},
    {"layers_to_transform": 1, "layers_pattern": "layers"}, {"task_type": "CAUSAL_LM"}, {},
]  # fmt: skip


def config(case, value):
    field = case.partition(",")[0]
    targets = r".*(q|v)_proj" if case == "layers_to_transform, regex" else ["q_proj", "v_proj"]
    more = {"layers_to_transform": [0]} if field == "layers_pattern" else {}
    return OFTConfig(oft_block_size=8, target_modules=targets, **{field: value}, **more)


def caught(make):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        result = make()
    words = ("fits no layer", "layers_to_transform", "pattern", "exclude_modules", "no list of layers")
    return result, [str(w.message) for w in found if any(word in str(w.message) for word in words)]


@pytest.mark.parametrize("case", WRONG)
def test_what_fits_nothing_is_warned_about_once(llama, case):
    value, words = WRONG[case]
    _, messages = caught(lambda: get_peft_model(llama(), config(case, value)))
    assert len(messages) == 1 and all(word in messages[0] for word in [case.partition(",")[0], *words]), messages
    second = get_peft_model(llama(), OFTConfig(oft_block_size=8, target_modules=["q_proj"]))
    _, messages = caught(lambda: second.add_adapter("b", config(case, value)))
    assert len(messages) == 1 and "'b'" in messages[0], messages


def test_all_of_it_is_one_warning(llama):
    wrong = OFTConfig(oft_block_size=8, target_modules=["q_proj"], rank_pattern={"x_proj": 2}, exclude_modules=["zz"])
    _, messages = caught(lambda: get_peft_model(llama(), wrong))
    assert len(messages) == 1 and "x_proj" in messages[0] and "zz" in messages[0]


@pytest.mark.parametrize("fields", RIGHT)
def test_what_fits_is_not_warned_about(llama, fields):
    made = OFTConfig(oft_block_size=8, target_modules=["q_proj", "v_proj"], **fields)
    assert caught(lambda: get_peft_model(llama(), made))[1] == []


@pytest.mark.parametrize("case", WRONG)
def test_a_file_is_asked_for_its_layer_settings_alone(llama, case, tmp_path):
    value, _ = WRONG[case]
    model, _ = caught(lambda: get_peft_model(llama(), config(case, value)))
    caught(lambda: model.save_pretrained(str(tmp_path)))
    _, messages = caught(lambda: PeftModel.from_pretrained(llama(), str(tmp_path)))
    assert len(messages) == case.startswith("layer_settings"), messages


def test_the_heads_that_pefts_host_adds_are_no_mistake(llama, tmp_path):
    from transformers import LlamaConfig, LlamaForSequenceClassification

    def base():
        return LlamaForSequenceClassification(LlamaConfig(
            hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=9,
        ))  # fmt: skip

    made = OFTConfig(oft_block_size=8, target_modules=["q_proj"], task_type="SEQ_CLS")
    model, messages = caught(lambda: get_peft_model(base(), made))
    again = OFTConfig(oft_block_size=8, target_modules=["q_proj"], task_type="SEQ_CLS")
    messages += caught(lambda: model.add_adapter("b", again))[1]
    model.save_pretrained(str(tmp_path))
    messages += caught(lambda: PeftModel.from_pretrained(base(), str(tmp_path)))[1]
    assert messages == [] and json.loads((tmp_path / "adapter_config.json").read_text())["modules_to_save"]


@pytest.mark.parametrize("field", ["rank_pattern", "block_size_pattern"])
def test_patterns_whose_order_counts_mean_the_same_in_a_file(llama, ids, turn, tmp_path, field):
    fields = {field: {"q_proj": 4, r"layers\.0\..*": 2, ".*": 8}}
    model = turn(get_peft_model(llama(), OFTConfig(oft_block_size=6, target_modules=["q_proj", "v_proj"], **fields)))
    model.save_pretrained(str(tmp_path))
    again = PeftModel.from_pretrained(llama(), str(tmp_path))
    assert (again(ids).logits == model(ids).logits).all()
    sizes = [module.oft_settings["default"] for module in again.modules() if hasattr(module, "oft_settings")]
    found = [one.r if field == "rank_pattern" else one.spec.block_size for one in sizes]
    assert found == [4, 2, 4, 8]
