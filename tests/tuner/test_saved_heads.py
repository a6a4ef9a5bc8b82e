"""A target that PEFT's host trains in full: it is trained in full, not rotated as well, and a warning says so."""

from __future__ import annotations

import warnings

import peft
import pytest
import torch
import transformers as tf
from peft import PeftModel

from orthotune import OFTConfig, get_peft_model
from orthotune.errors import TargetError

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 40}
BERT = tf.BertConfig(**SMALL)
LLAMA = tf.LlamaConfig(**SMALL, num_key_value_heads=1, pad_token_id=0)
CASES = {
    "TOKEN_CLS, classifier": (tf.BertForTokenClassification, BERT, "classifier", "query"),
    "TOKEN_CLS, score": (tf.LlamaForTokenClassification, LLAMA, "score", "q_proj"),
    "SEQ_CLS, classifier": (tf.BertForSequenceClassification, BERT, "classifier", "query"),
    "SEQ_CLS, score": (tf.LlamaForSequenceClassification, LLAMA, "score", "q_proj"),
    "QUESTION_ANS, qa_outputs": (tf.BertForQuestionAnswering, BERT, "qa_outputs", "query"),
}
IDS = torch.arange(1, 9).view(2, 4)


def made(case):
    torch.manual_seed(0)
    kind, config, head, other = CASES[case]
    return kind(config).eval(), head, other


def rotated(model):
    return {name.rpartition(".")[2] for name, module in model.named_modules() if hasattr(module, "oft_settings")}


def fields(case, targets, **more):
    return {"oft_block_size": 4, "target_modules": targets, "task_type": case.partition(",")[0], **more}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", [OFTConfig, peft.OFTConfig])
def test_the_head_is_trained_in_full_and_named(case, kind, turn, tmp_path):
    base, head, other = made(case)
    with pytest.warns(UserWarning, match=f"target_modules has '{head}', which modules_to_save trains in full"):
        model = get_peft_model(base, kind(**fields(case, [other, head])))
    assert rotated(model) == {other}
    with torch.no_grad():
        for key, parameter in turn(model).named_parameters():
            if "modules_to_save" in key:
                assert parameter.requires_grad
                parameter.add_(0.1)
    saved = model.peft_config["default"].modules_to_save
    assert head in saved and len(saved) == len(set(saved))
    expected = model.eval()(IDS)[0]
    model.save_pretrained(str(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        again = PeftModel.from_pretrained(made(case)[0], str(tmp_path)).eval()
    assert torch.equal(again(IDS)[0], expected)


@pytest.mark.parametrize("case", CASES)
def test_a_second_adapter(case):
    base, head, other = made(case)
    model = get_peft_model(base, OFTConfig(**fields(case, [other])))
    with pytest.warns(UserWarning, match=f"Adapter 'b': target_modules has '{head}'"):
        model.add_adapter("b", OFTConfig(**fields(case, [other, head])))
    assert rotated(model) == {other}


@pytest.mark.parametrize("case", CASES)
def test_a_pattern_that_also_fits_the_head_needs_no_warning(case):
    base, head, other = made(case)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model = get_peft_model(base, OFTConfig(**fields(case, rf".*({other}|{head})")))
    assert rotated(model) == {other}


@pytest.mark.parametrize("case", CASES)
def test_the_head_alone_is_refused_in_words(case):
    base, head, _ = made(case)
    with pytest.raises(TargetError, match=rf"target_modules=\['{head}'\].*modules_to_save"):
        get_peft_model(base, OFTConfig(**fields(case, [head])))


def test_a_module_that_the_user_saves(llama):
    named = OFTConfig(oft_block_size=8, target_modules=["q_proj", "lm_head"], modules_to_save=["lm_head"])
    with pytest.warns(UserWarning, match="target_modules has 'lm_head', which modules_to_save trains in full"):
        assert rotated(get_peft_model(llama(), named)) == {"q_proj"}
    everything = OFTConfig(oft_block_size=8, target_modules="all-linear", modules_to_save=["up_proj"])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert "up_proj" not in rotated(get_peft_model(llama(), everything))


def test_without_pefts_task_models_a_head_can_be_rotated():
    base = made("TOKEN_CLS, classifier")[0]
    base.add_adapter(OFTConfig(**fields("TOKEN_CLS, ", ["query", "classifier"])))
    assert rotated(base) == {"query", "classifier"}
