"""transformers' continuous batching: every request under the active adapter, or each under its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from orthotune import OFTConfig, get_peft_model
from orthotune.errors import ConfigError, UnsupportedLayerError
from orthotune.layers.mixed_batch import MixedBatch
from orthotune.tuner import continuous_batching
from orthotune.tuner.mixed_batch import check_named
from tests.support.contract_cases import randomize, seeded

ContinuousBatchingConfig = pytest.importorskip("transformers.generation.configuration_utils").__dict__.get(
    "ContinuousBatchingConfig"
)
PROMPTS = [[5, 6, 7, 8, 9], [11, 12, 13], [20, 21, 22, 23]]


def _model() -> Any:
    config = LlamaConfig(
        vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=256, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    with seeded(0):
        model = LlamaForCausalLM(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter.data, std=0.3)
    targets = ["q_proj", "v_proj", "down_proj"]
    return randomize(get_peft_model(model, OFTConfig(oft_block_size=4, target_modules=targets))).eval()


def _one_by_one(model: Any) -> list[list[int]]:
    found = [model.generate(input_ids=torch.tensor([p]), max_new_tokens=5, do_sample=False) for p in PROMPTS]
    return [tokens[0, len(p) :].tolist() for tokens, p in zip(found, PROMPTS, strict=True)]


@pytest.mark.skipif(ContinuousBatchingConfig is None, reason="this version of transformers has no config of batching")
def test_requests_run_under_the_active_adapter() -> None:
    model = _model()
    expected = _one_by_one(model)
    with model.disable_adapter():
        assert _one_by_one(model) != expected
    options = GenerationConfig(max_new_tokens=5, do_sample=False, eos_token_id=1, pad_token_id=1)
    small = ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=64)
    found = model.generate_batch(
        inputs=PROMPTS, generation_config=options, continuous_batching_config=small, warmup=False
    )
    assert [found[f"req_{number}"].generated_tokens for number in range(3)] == expected


WHY_NOT = "this version of transformers does not say whose tokens a step holds"
by_request = pytest.mark.skipif(continuous_batching._processor() is None, reason=WHY_NOT)
NAMES = ["a", "b", "__base__", "b", "a", "c", "__base__"]
#: prompts of which two are longer than a page of the cache and begin alike, under different adapters
LONG = [PROMPTS[0], PROMPTS[0] * 2, PROMPTS[1], [*PROMPTS[0] * 2, 7], [*PROMPTS[0] * 2, 9], [3], PROMPTS[2]]


def _several(targets: list[str], **fields: Any) -> Any:
    """Three adapters: two of the fields, and one of other blocks on fewer layers."""
    with seeded(0):
        base = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
                num_key_value_heads=2, max_position_embeddings=256, bos_token_id=0, eos_token_id=1, pad_token_id=1,
                attention_bias=True, tie_word_embeddings=False,
            )
        )  # fmt: skip
        for parameter in base.parameters():
            torch.nn.init.normal_(parameter.data, std=0.3)
    config = OFTConfig(oft_block_size=4, target_modules=targets, **fields)
    model = get_peft_model(base, config, "a")
    model.add_adapter("b", OFTConfig(oft_block_size=4, target_modules=targets, **fields))
    model.add_adapter("c", OFTConfig(oft_block_size=8, target_modules=["q_proj"]))
    with torch.no_grad(), seeded(3):
        for name, parameter in model.named_parameters():
            if "oft_" in name:
                parameter += 0.4 * torch.randn_like(parameter)
    return model.eval()


def _options(**fields: Any) -> GenerationConfig:
    return GenerationConfig(**{"max_new_tokens": 6, "do_sample": False, "eos_token_id": 1, "pad_token_id": 1, **fields})


def _small(tokens: int = 64) -> Any:
    page = {"page_size" if "page_size" in ContinuousBatchingConfig.__dataclass_fields__ else "block_size": 8}
    return ContinuousBatchingConfig(num_blocks=48, max_batch_tokens=tokens, return_logprobs=True, **page)


def _batch(model: Any, prompts: Any, tokens: int = 64, **more: Any) -> list[Any]:
    found = model.generate_batch(
        inputs=prompts, generation_config=_options(), continuous_batching_config=_small(tokens), warmup=False, **more
    )
    return [found[f"req_{number}"] for number in range(len(prompts))]


def _alone(model: Any, prompt: list[int], name: str) -> Any:
    """A request by itself, with its adapter active."""
    if name == "__base__":
        with model.disable_adapter():
            return _batch(model, [prompt])[0]
    model.set_adapter(name)
    return _batch(model, [prompt])[0]


@by_request
@pytest.mark.parametrize(
    ("targets", "fields"),
    [
        (["q_proj", "v_proj", "down_proj"], {}),
        (["q_proj", "o_proj", "embed_tokens", "lm_head"], {"magnitude": True}),
        (["v_proj", "up_proj"], {"side": "out", "block_share": True}),
        (["q_proj"], {"modules_to_save": ["lm_head"]}),
    ],
    ids=["inputs", "vocabulary", "outputs", "saved head"],
)
def test_each_request_has_its_adapter(targets: list[str], fields: dict[str, Any]) -> None:
    model = _several(targets, **fields)
    alone = [_alone(model, prompt, name) for prompt, name in zip(LONG, NAMES, strict=True)]
    assert len({tuple(one.generated_tokens) for one in alone}) > 4
    model.set_adapter("a")
    for tokens in (64, 9):  # of a step: whole prompts, and prompts in parts
        found = _batch(model, LONG, tokens, adapter_names=NAMES)
        assert [one.generated_tokens for one in found] == [one.generated_tokens for one in alone]
        for one, own in zip(found, alone, strict=True):
            torch.testing.assert_close(torch.tensor(one.logprobs), torch.tensor(own.logprobs), atol=2e-5, rtol=1e-4)
        # Nothing of it stays: the active adapter answers as before.
        assert _batch(model, LONG[:1])[0].generated_tokens == alone[0].generated_tokens


@by_request
def test_several_answers_to_a_prompt_have_its_adapter() -> None:
    model = _several(["q_proj", "v_proj", "down_proj"])
    alone = [_alone(model, LONG[1], name).generated_tokens for name in ("a", "b")]
    assert alone[0] != alone[1]
    found = model.generate_batch(
        inputs=[LONG[1]] * 2, adapter_names=["a", "b"], warmup=False, continuous_batching_config=_small(),
        generation_config=_options(num_return_sequences=2, do_sample=True, top_k=1),
    )  # fmt: skip
    assert len(found) == 4
    for number, expected in enumerate(alone):
        assert found[f"req_{number}"].generated_tokens == expected
        assert found[f"req_{number}__child#0"].generated_tokens == expected


@by_request
def test_what_the_config_says_stays() -> None:
    config = _small()
    before = dict(vars(config))
    _several(["q_proj"]).generate_batch(
        inputs=PROMPTS, adapter_names=["a", "b", "a"], generation_config=_options(), continuous_batching_config=config,
        warmup=False,
    )  # fmt: skip
    assert vars(config) == before and config.allow_block_sharing


@by_request
@pytest.mark.parametrize(
    ("names", "more", "words"),
    [
        (["a", "b"], {}, "2 names. Found: 3 prompts"),
        (["a", "b", "d"], {}, "non-existing adapter.*: d"),
        ("abc", {}, "adapter_names='abc'"),
        (["a", "b", "a"], {"persistent_manager": True}, "a manager that is kept"),
    ],
)
def test_names_that_cannot_be_are_refused(names: Any, more: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        _batch(_several(["q_proj"]), PROMPTS, adapter_names=names, **more)


@by_request
def test_what_goes_wrong_while_generating_is_raised() -> None:
    model = _several(["q_proj"])
    model.merge_adapter(["a"])
    with pytest.raises(ConfigError, match="merged into its weight"):
        _batch(model, PROMPTS, adapter_names=["a", "b", "a"])
    model.unmerge_adapter()
    config = _small()
    config.default_compile_level = 1
    with pytest.raises(ConfigError, match="compiled or replayed as a graph"):
        model.generate_batch(
            inputs=PROMPTS, adapter_names=["a", "b", "a"], generation_config=_options(), warmup=False,
            continuous_batching_config=config,
        )  # fmt: skip
    model.train()
    with pytest.raises(ConfigError, match="training mode"):
        _batch(model, PROMPTS, adapter_names=["a", "b", "a"])


def test_a_layer_whose_rows_are_no_tokens_is_refused() -> None:
    convolution = torch.nn.ModuleDict({"conv": torch.nn.Conv1d(8, 8, 3, padding=1)})
    model = get_peft_model(convolution, OFTConfig(oft_block_size=4, target_modules=["conv"]), "a").eval()
    with pytest.raises(UnsupportedLayerError, match="layer 'conv'.*whose rows are not tokens"):
        check_named(model, MixedBatch(["a"]), by_token=True)


def test_a_version_without_the_requests_of_a_step_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model()
    monkeypatch.setattr(continuous_batching, "_processor", lambda: None)
    with pytest.raises(ConfigError, match="do not say whose tokens they hold"):
        model.generate_batch(inputs=PROMPTS, adapter_names=["default", "__base__", "default"])
