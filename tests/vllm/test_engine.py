"""OFT adapters in the stock engine, beside merged models in the same engine and LoRA in it without the plug-in."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from orthotune.errors import AdapterFileError, ConfigError
from orthotune.operations.export import export
from orthotune.serving.step import Step
from tests.support.tiny_text import make_tokenizer
from tests.vllm.engines import (
    ENVIRONMENT,
    PROMPTS,
    Answer,
    answers,
    differences,
    make_adapter,
    make_lora,
    manager,
    request,
    unload,
)  # fmt: skip

#: Seven engines are started one after the other.
pytestmark = pytest.mark.timeout(1800)
#: float32: products in another order, over two layers of 128 features
CLOSE = 1e-3
OPTIONS = {"additional_config": {"orthotune": {"block_sizes": [32], "outputs": "rotate"}}}
ADAPTERS: dict[str, dict[str, Any]] = {
    "every-layer": {},
    "some-layers": {"oft_block_size": 16, "target_modules": ["q_proj", "v_proj", "down_proj"]},
    "magnitudes": {"magnitude": True, "bias": "oft_only"},
    "outputs": {"side": "out", "oft_block_size": 16, "target_modules": ["q_proj", "k_proj", "o_proj", "up_proj"]},
    "reflections": {
        "transform": "reflections",
        "oft_block_size": None,
        "r": 4,
        "target_modules": ["o_proj", "gate_proj"],
    },
}


@pytest.fixture(scope="module")
def lora(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_lora(base, tmp_path_factory.mktemp("lora"))


@pytest.fixture(scope="module")
def stock(base: Path, lora: Path) -> list[list[Answer]]:
    """Answers without the plug-in: of the base, and of a batch in which the base and a LoRA take turns."""
    command = [sys.executable, "-m", "tests.vllm.run_stock", str(base), str(lora)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **ENVIRONMENT}, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("ANSWERS ")]
    assert lines, done.stderr[-3000:]
    return [
        [Answer(tuple(tokens), tuple({int(token): own for token, own in step.items()} for step in steps))
         for tokens, steps in batch]
        for batch in json.loads(lines[0].removeprefix("ANSWERS "))
    ]  # fmt: skip


def test_each_adapter_in_one_batch_is_its_merged_model(
    engine: Any, adapters: dict[str, Path], merged: dict[str, list[Answer]], stock: list[list[Answer]]
) -> None:
    mixed = answers(engine, PROMPTS, [request(n + 1, path) for n, path in enumerate(adapters.values())])
    for number, (name, got) in enumerate(zip(adapters, mixed, strict=True)):
        expected = merged[name][number]
        assert got.tokens == expected.tokens and got.off(expected) < CLOSE, name
        assert got.off(stock[0][number]) > 10 * CLOSE, f"{name} changes nothing"


def test_prompts_under_one_adapter_are_its_merged_model(
    engine: Any, adapters: dict[str, Path], merged: dict[str, list[Answer]]
) -> None:
    for number, (name, path) in enumerate(adapters.items()):
        found = answers(engine, PROMPTS, [request(number + 1, path)] * len(PROMPTS))
        for got, expected in zip(found, merged[name], strict=True):
            assert got.tokens == expected.tokens and got.off(expected) < CLOSE, name


def test_base_and_lora_have_the_bits_of_the_engine_without_the_plug_in(
    engine: Any, lora: Path, stock: list[list[Answer]]
) -> None:
    unload(engine)
    assert answers(engine, PROMPTS) == stock[0]
    other = request(7, lora)
    assert answers(engine, PROMPTS, [None, other, None, other, None]) == stock[1]


def test_base_lora_and_rotations_in_one_batch(
    engine: Any, adapters: dict[str, Path], lora: Path, merged: dict[str, list[Answer]], stock: list[list[Answer]]
) -> None:
    unload(engine)
    first, second = (request(n + 1, adapters[name]) for n, name in ((0, "every-layer"), (2, "magnitudes")))
    found = answers(engine, PROMPTS, [None, request(7, lora), first, second, None])
    assert [found[0], found[4]] == [stock[0][0], stock[0][4]], "rows of the base have other bits"
    assert found[1].tokens == stock[1][1].tokens and found[1].off(stock[1][1]) < CLOSE
    assert found[2].off(merged["every-layer"][2]) < CLOSE and found[3].off(merged["magnitudes"][3]) < CLOSE


def test_an_adapter_exported_as_lora_is_served_as_peft_computes_it(
    engine: Any, base: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    """The folder of ``export --to lora``, with ranks that differ from layer to layer, in the engine's own LoRA."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    done = export(adapters["some-layers"], tmp_path / "lora", base, "lora", rank=8, error=0.9)
    assert len({layer.rank for layer in done.layers}) > 1
    unload(engine)
    found = answers(engine, PROMPTS, [request(700, tmp_path / "lora")] * len(PROMPTS))
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    away = differences(PeftModel.from_pretrained(model, tmp_path / "lora").eval(), base, found)
    assert max(map(abs, away)) < CLOSE
    assert found != answers(engine, PROMPTS)


def test_loading_and_unloading_many_times_keeps_memory_and_answers(
    engine: Any, adapters: dict[str, Path], merged: dict[str, list[Answer]]
) -> None:
    core = engine.llm_engine
    paths = list(adapters.values())[:3]

    def cycles(count: int, number: int) -> None:
        for index in range(count):
            assert core.add_lora(request(number + index, paths[index % 3]))
            assert core.remove_lora(number + index)

    cycles(20, 100)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cycles(200, 200)
    # in KiB; the adapters of 200 cycles have 40 MB in their files
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 8000
    assert len(manager(engine).list_adapters()) <= 6
    (got,) = answers(engine, PROMPTS[:1], [request(1, adapters["every-layer"])])
    assert got.off(merged["every-layer"][0]) < CLOSE


def test_more_adapters_than_slots_take_turns(
    engine: Any, adapters: dict[str, Path], merged: dict[str, list[Answer]]
) -> None:
    requests = [request(300 + n, list(adapters.values())[n % 5]) for n in range(7)]
    prompts = [PROMPTS[n % 5] for n in range(7)]
    for number, got in enumerate(answers(engine, prompts, requests)):
        assert got.off(list(merged.values())[number % 5][number % 5]) < CLOSE


def test_what_cannot_be_served_is_refused_and_the_engine_goes_on(
    engine: Any, base: Path, adapters: dict[str, Path], stock: list[list[Answer]], tmp_path: Path
) -> None:
    core = engine.llm_engine
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in adapters["every-layer"].glob("adapter_*"):
        (broken / file.name).write_bytes(file.read_bytes())
    weights = broken / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(AdapterFileError, match="adapter_model.safetensors"):
        core.add_lora(request(400, broken))
    blocks = make_adapter(base, tmp_path / "blocks", 9, oft_block_size=64)
    with pytest.raises(ConfigError, match=r"Found: blocks of 64.*block_sizes.*\[32, 64\]"):
        core.add_lora(request(401, blocks))
    other = make_adapter(_smaller(tmp_path / "smaller"), tmp_path / "other", 9, target_modules=["o_proj"])
    with pytest.raises(ConfigError, match=r"o_proj'. Found: a rotation of 64 features. Needed: 128. Name the base"):
        core.add_lora(request(402, other))
    assert answers(engine, PROMPTS) == stock[0]


def _smaller(folder: Path) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    LlamaForCausalLM(
        LlamaConfig(vocab_size=258, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=2)
    ).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def test_a_layer_in_compiled_code_follows_the_slots(
    engine: Any, adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled once, a layer is right for every later batch: what the host knows of it is not compiled in."""
    monkeypatch.delenv("TORCHDYNAMO_DISABLE")
    for number, path in enumerate(adapters.values()):
        engine.llm_engine.add_lora(request(number + 1, path))
    adapted = manager(engine)._adapter_manager
    layer = adapted.modules["model.layers.0.self_attn.qkv_proj"]
    x = torch.randn(4, 128, generator=torch.Generator().manual_seed(3))
    calls = []

    def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Any:
        calls.append(graph)
        return graph.forward

    def call(rows: torch.Tensor) -> torch.Tensor:
        return layer(rows)[0]  # type: ignore[no-any-return]

    with torch.inference_mode(), torch._dynamo.config.patch(disable=False):
        compiled = torch.compile(call, backend=backend, fullgraph=True)
        for slots in ([0, 0, -1, 1], [-1, -1, -1, -1], [3, 1, 2, 0]):
            layer.punica_wrapper.orthotune_step = Step(slots, x.device)
            assert torch.equal(compiled(x), call(x)), slots
    adapted._last_mapping = None  # the next batch says anew which token has which slot
    assert len(calls) == 1
