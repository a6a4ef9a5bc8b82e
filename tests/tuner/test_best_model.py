"""transformers' Trainer with load_best_model_at_end: every active adapter ends with its own best weights."""

from __future__ import annotations

import os
import warnings

import pytest
import torch
import transformers.trainer
from peft import LoraConfig
from safetensors.torch import load_file
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

import orthotune
from orthotune import OFTConfig, get_peft_model

STEPS, BEST = 3, 1


class Rows(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, i):
        ids = torch.arange(i, i + 6) % 50
        return {"input_ids": ids, "labels": ids}


class Judged(Trainer):
    """Scores of its own: the first checkpoint is the best one."""

    def evaluate(self, *_, **__):
        return {"eval_loss": float(self.state.global_step)}


def trained(model, folder, kind=Judged, callbacks=(), **options):
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=STEPS, eval_strategy="steps", eval_steps=1, save_steps=1, report_to="none",
        per_device_train_batch_size=4, learning_rate=1e-2, load_best_model_at_end=True, use_cpu=True,
        disable_tqdm=True, save_only_model=True, **options,
    )  # fmt: skip
    trainer = kind(model, arguments, train_dataset=Rows(), eval_dataset=Rows(), callbacks=list(callbacks))
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith(f"checkpoint-{BEST}")
    return trainer


def numbers(model, name):
    return {key: p.detach().clone() for key, p in model.named_parameters() if "oft_" in key and f".{name}." in key}


def saved(folder, step, name):
    own = os.path.join(folder, f"checkpoint-{step}", *([] if name == "default" else [name]))
    return load_file(os.path.join(own, "adapter_model.safetensors"))


def has(model, folder, step, name):
    found = numbers(model, name)
    written = {key: tensor for key, tensor in saved(folder, step, name).items() if "oft_" in key}
    return all(torch.equal(found[f"{key.removesuffix('.weight')}.{name}.weight"], t) for key, t in written.items())


def config(**fields):
    return OFTConfig(oft_block_size=8, target_modules=["q_proj"], **fields)


@pytest.mark.parametrize("name", ["default", "mine", "oft"])
def test_one_adapter(llama, tmp_path, name):
    model = get_peft_model(llama(), config(), adapter_name=name)
    trained(model, tmp_path)
    assert has(model, tmp_path, BEST, name) and not has(model, tmp_path, STEPS, name)


def test_an_adapter_beside_default_does_not_get_its_weights(llama, turn, tmp_path):
    model = turn(get_peft_model(llama(), config()))
    model.add_adapter("mine", config())
    model.set_adapter("mine")
    before = numbers(model, "default")
    trained(model, tmp_path)
    assert has(model, tmp_path, BEST, "mine") and not has(model, tmp_path, STEPS, "mine")
    assert all(torch.equal(p, before[key]) for key, p in numbers(model, "default").items())
    assert model.active_adapters == ["mine"]


@pytest.mark.parametrize("name", ["default", "mine"])
def test_an_adapter_that_transformers_holds(llama, tmp_path, name):
    model = llama()
    model.add_adapter(config(), adapter_name=name)
    trained(model, tmp_path)

    def same(step):
        written = load_file(tmp_path / f"checkpoint-{step}" / "adapter_model.safetensors")
        found = {f"base_model.model.{key.replace(f'.{name}.', '.')}": p for key, p in numbers(model, name).items()}
        assert found.keys() == written.keys() and found
        return all(torch.equal(found[key], tensor) for key, tensor in written.items())

    assert same(BEST) and not same(STEPS)


@pytest.mark.parametrize("names", [["mine", "default"], ["default", "mine"]])
def test_every_active_adapter(llama, tmp_path, names):
    model = get_peft_model(llama(), config())
    model.add_adapter("mine", config())
    model.base_model.set_adapter(names)
    trained(model, tmp_path)
    for name in names:
        assert has(model, tmp_path, BEST, name) and not has(model, tmp_path, STEPS, name), name


def test_a_checkpoint_without_the_adapter_is_warned_about(llama, tmp_path):
    class Losing(TrainerCallback):
        def on_save(self, args, state, control, **_):
            os.remove(f"{args.output_dir}/checkpoint-{state.global_step}/mine/adapter_model.safetensors")

    model = get_peft_model(llama(), config(), adapter_name="mine")
    with pytest.warns(UserWarning, match="load_best_model_at_end.*'mine'.*checkpoint-1.*last step"):
        trained(model, tmp_path, callbacks=[Losing()])


def test_a_trainer_class_of_ones_own_and_frozen_weights_stay(llama, tmp_path):
    class Own(Judged):
        def _load_best_model(self):
            super()._load_best_model()
            self.loaded = True

    model = get_peft_model(llama(), config(modules_to_save=["lm_head"]), adapter_name="mine")
    flags = {key: p.requires_grad for key, p in model.named_parameters()}
    trainer = trained(model, tmp_path, Own)
    assert trainer.loaded and {key: p.requires_grad for key, p in model.named_parameters()} == flags
    head = saved(tmp_path, BEST, "mine")["base_model.model.lm_head.weight"]
    assert torch.equal(model.base_model.model.lm_head.modules_to_save["mine"].weight, head)


def test_other_methods_are_left_to_transformers(llama, tmp_path):
    """As PEFT has it: a named LoRA keeps its last weights."""
    model = get_peft_model(llama(), LoraConfig(r=2, target_modules=["q_proj"]), adapter_name="mine")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        trained(model, tmp_path)
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_B"
    found = model.get_parameter(f"{key}.mine.weight")
    assert torch.equal(found, saved(tmp_path, STEPS, "mine")[f"{key}.weight"])


def test_unregister_gives_transformers_its_function_back(llama):
    get_peft_model(llama(), config(), adapter_name="mine")
    served = transformers.trainer.Trainer._load_best_model
    try:
        orthotune.unregister()
        own = transformers.trainer.Trainer._load_best_model
        assert own is not served and own is served.__wrapped__
    finally:
        orthotune.register()
    assert transformers.trainer.Trainer._load_best_model is not own


LATE = """
import sys, torch
from torch import nn
from orthotune import OFTConfig, get_peft_model
assert "transformers.trainer" not in sys.modules, "nobody has asked for the trainer"
model = get_peft_model(nn.Sequential(nn.Linear(8, 8)), OFTConfig(oft_block_size=4, target_modules=["0"]), "mine")
from transformers import Trainer
before = Trainer._load_best_model
model.train()(torch.ones(1, 8)).sum().backward()
assert Trainer._load_best_model.__wrapped__ is before
"""


def test_a_trainer_that_is_imported_after_the_adapter_is_made(fresh_after_peft):
    done = fresh_after_peft(LATE)
    assert done.returncode == 0, done.stderr
