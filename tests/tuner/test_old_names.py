"""Adapters whose files have the module names of older versions of transformers."""

from __future__ import annotations

import json

import pytest
import torch
import transformers as tf
from peft import PeftModel
from safetensors.torch import load_file, save_file

from orthotune import OFTConfig, get_peft_model, load_adapter
from orthotune.errors import AdapterFileError, OrthotuneError

TEXT = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1}  # fmt: skip
VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
          "image_size": 16, "patch_size": 8}  # fmt: skip
IDS = torch.arange(1, 13).view(2, 6)


def gemma3():
    return tf.Gemma3ForConditionalGeneration(tf.Gemma3Config(
        text_config=tf.Gemma3TextConfig(**TEXT, head_dim=8, sliding_window=8),
        vision_config=tf.SiglipVisionConfig(**VISION), mm_tokens_per_image=4, image_token_index=39,
        boi_token_index=38, eoi_token_index=37,
    ))  # fmt: skip


def llava():
    return tf.LlavaForConditionalGeneration(tf.LlavaConfig(
        text_config=tf.LlamaConfig(**TEXT), vision_config=tf.CLIPVisionConfig(**VISION), image_token_index=39
    ))  # fmt: skip


#: today's beginning of a name -> the one before
OLD = {"model.language_model.": "language_model.model."}
MODELS = {"gemma3": gemma3, "llava": llava}
WAYS = {
    "PeftModel": lambda model, folder: PeftModel.from_pretrained(model, folder),
    "load_adapter of a PeftModel": lambda model, folder: add(model, folder),
    "orthotune.load_adapter": lambda model, folder: load_adapter(model, folder)[0],
}


def add(model, folder):
    model = get_peft_model(model, OFTConfig(oft_block_size=2, target_modules=["q_proj"]), adapter_name="first")
    model.load_adapter(folder, "second")
    model.set_adapter("second")
    return model


def make(kind):
    torch.manual_seed(0)
    return MODELS[kind]().eval()


def old(name):
    for new, before in OLD.items():
        name = name.replace(new, before)
    return name


@pytest.fixture
def saved(turn, tmp_path):
    """Saves an adapter by the older names, with targets that are short or whole."""

    def save(kind, whole):
        model = turn(get_peft_model(make(kind), OFTConfig(
            oft_block_size=4, target_modules=r".*language_model.*(q_proj|v_proj)", magnitude=whole)))  # fmt: skip
        model.save_pretrained(str(tmp_path))
        names = [name.removeprefix("base_model.model.") for name, m in model.named_modules() if hasattr(m, "oft_R")]
        config = json.loads((tmp_path / "adapter_config.json").read_text())
        short = {"target_modules": ["q_proj", "v_proj"], "exclude_modules": r".*vision.*"}
        config |= {"target_modules": [old(name) for name in names]} if whole else short
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        path = tmp_path / "adapter_model.safetensors"
        save_file({old(key): tensor for key, tensor in load_file(path).items()}, path)
        return str(tmp_path), model.eval()(input_ids=IDS).logits

    return save


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("whole", [False, True])
def test_older_names_are_read_and_said(saved, kind, way, whole):
    folder, expected = saved(kind, whole)
    with pytest.warns(UserWarning, match="older version of transformers"):
        model = WAYS[way](make(kind), folder)
    assert torch.equal(model.eval()(input_ids=IDS).logits, expected)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("way", WAYS)
def test_names_that_no_version_had_are_refused(saved, kind, way, tmp_path):
    folder, _ = saved(kind, False)
    path = tmp_path / "adapter_model.safetensors"
    save_file({key.replace("layers.0", "layers.7"): tensor for key, tensor in load_file(path).items()}, path)
    with pytest.raises(OrthotuneError):
        WAYS[way](make(kind), folder)


def test_a_plain_language_model_has_no_older_names(saved, tmp_path):
    folder, _ = saved("llava", False)
    model = tf.LlamaForCausalLM(tf.LlamaConfig(**TEXT))
    with pytest.raises(AdapterFileError):
        PeftModel.from_pretrained(model, folder)
