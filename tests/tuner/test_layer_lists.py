"""layers_to_transform wherever the list of layers is, and all-linear beside the head of every kind of task."""

from __future__ import annotations

import pytest
import transformers as tf
from torch import nn

from orthotune import OFTConfig, get_peft_model
from orthotune.errors import TargetError


def adapted(model):
    found = (name for name, module in model.named_modules() if hasattr(module, "oft_settings"))
    return sorted(name.removeprefix("base_model.model.") for name in found)


def block():
    return nn.ModuleDict({"lin": nn.Linear(8, 8), "experts": nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])})


def layers():
    return nn.ModuleList([block() for _ in range(3)])


def nested(depth):
    model = nn.ModuleDict({"layers": layers()})
    for level in range(depth):
        model = nn.ModuleDict({f"at{level}": model})
    return model


#: where the list is -> the model and what its layers' names begin with
LISTS = {
    "the model itself": (layers, ""),
    "a child": (lambda: nested(0), "layers."),
    "a grandchild": (lambda: nested(1), "at0.layers."),
    "deep": (lambda: nested(3), "at2.at1.at0.layers."),
}
NAMED = [(where, pattern) for where in LISTS for pattern in (None, "layers", ["h", "layers"], []) if where[0] != "t"]


@pytest.mark.parametrize("wanted", [0, [1], [0, 2], (1, 2)])
@pytest.mark.parametrize("where, pattern", [("the model itself", None), ("the model itself", []), *NAMED])
def test_the_layers_that_are_asked_for(where, pattern, wanted):
    make, stem = LISTS[where]
    indices = [wanted] if isinstance(wanted, int) else list(wanted)
    for targets, ends in ((["lin"], ["lin"]), (["experts.0", "experts.1"], ["experts.0", "experts.1"])):
        config = OFTConfig(oft_block_size=4, target_modules=targets, layers_to_transform=wanted, layers_pattern=pattern)
        assert adapted(get_peft_model(make(), config)) == sorted(f"{stem}{i}.{end}" for i in indices for end in ends)


@pytest.mark.parametrize("where", LISTS)
def test_all_linear_in_the_layers_that_are_asked_for(where):
    make, stem = LISTS[where]
    model = get_peft_model(make(), OFTConfig(oft_block_size=4, target_modules="all-linear", layers_to_transform=[2]))
    assert adapted(model) == [f"{stem}2.experts.0", f"{stem}2.experts.1", f"{stem}2.lin"]


def test_all_linear_in_no_layer_is_refused_in_words():
    with pytest.raises(TargetError, match=r"layers_to_transform=\[7\]"):
        get_peft_model(layers(), OFTConfig(oft_block_size=4, target_modules="all-linear", layers_to_transform=[7]))


SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 40}
BERT = tf.BertConfig(**SMALL)
DISTIL = tf.DistilBertConfig(dim=16, n_layers=1, n_heads=2, hidden_dim=32, vocab_size=40)
ROBERTA = tf.RobertaConfig(**SMALL)
LLAMA = tf.LlamaConfig(**SMALL, num_key_value_heads=1, pad_token_id=0)
T5 = tf.T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0)

TASKS = {
    "TOKEN_CLS": [(tf.BertForTokenClassification, BERT), (tf.DistilBertForTokenClassification, DISTIL),
                  (tf.LlamaForTokenClassification, LLAMA)],
    "SEQ_CLS": [(tf.BertForSequenceClassification, BERT), (tf.DistilBertForSequenceClassification, DISTIL),
                (tf.RobertaForSequenceClassification, ROBERTA), (tf.LlamaForSequenceClassification, LLAMA)],
    "QUESTION_ANS": [(tf.BertForQuestionAnswering, BERT), (tf.DistilBertForQuestionAnswering, DISTIL)],
    "CAUSAL_LM": [(tf.LlamaForCausalLM, LLAMA)],
    "SEQ_2_SEQ_LM": [(tf.T5ForConditionalGeneration, T5)],
    "FEATURE_EXTRACTION": [(tf.BertModel, BERT), (tf.LlamaModel, LLAMA)],
    None: [(tf.BertModel, BERT), (tf.BertForTokenClassification, BERT)],
}  # fmt: skip
HEADS = ("classifier", "score", "qa_outputs")


@pytest.mark.parametrize(
    "task, make, config", [(task, *case) for task, cases in TASKS.items() for case in cases],
    ids=lambda value: getattr(value, "__name__", value if isinstance(value, str) else ""),
)  # fmt: skip
def test_all_linear_for_every_kind_of_task(task, make, config, tmp_path):
    """What PEFT trains in full is not rotated as well, nor anything in it; all else is."""
    base = make(config)
    linear = {name for name, module in base.named_modules() if isinstance(module, nn.Linear)}
    model = get_peft_model(base, OFTConfig(oft_block_size=4, target_modules="all-linear", task_type=task))
    whole = [name for name, module in model.named_modules() if hasattr(module, "modules_to_save")]
    whole = [name.removeprefix("base_model.model.") for name in whole if name.startswith("base_model.model.")]
    found = set(adapted(model))
    assert not [name for name in found for head in whole if f"{name}.".startswith(f"{head}.")]
    heads = {name for name in linear if any(f"{name}.".startswith(f"{head}.") for head in whole)}
    assert linear - heads - found <= {"lm_head"}, linear - heads - found
    if task in ("TOKEN_CLS", "SEQ_CLS", "QUESTION_ANS"):
        assert whole and all(name.endswith(HEADS) for name in whole)
    model.save_pretrained(str(tmp_path))
