"""Generating with a run, an adapter or a model: the adapter on and off, at a strength, in the chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LNTuningConfig, LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

import orthotune
from orthotune.cli.main import app
from orthotune.errors import ConfigError, OrthotuneError
from orthotune.operations.chat import chat, reply
from orthotune.operations.generate import generate
from orthotune.operations.generation.adapter_strength import layer_names, set_strength
from orthotune.operations.generation.decoding import Decoding
from orthotune.operations.generation.open_model import OpenedModel, open_model
from orthotune.operations.rewind import rewind
from tests.support.tiny_text import make_model, save_model

PROMPT = "blue1 blue2"
FEW = Decoding(max_tokens=10)
CONFIGS = {
    "oft": lambda: orthotune.OFTConfig(oft_block_size=8, target_modules="all-linear", task_type="CAUSAL_LM"),
    "neumann": lambda: orthotune.OFTConfig(
        oft_block_size=8, target_modules="all-linear", task_type="CAUSAL_LM", use_cayley_neumann=True
    ),
    "lora": lambda: LoraConfig(r=3, target_modules="all-linear", task_type="CAUSAL_LM"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with a chat template, one without, and an adapter of each method with parameters that are not 0."""
    folder = tmp_path_factory.mktemp("made")
    save_model(folder / "base", dtype="float32", chat=True)
    save_model(folder / "plain", dtype="float32")
    model = AutoModelForCausalLM.from_pretrained(folder / "base")
    for parameter in model.parameters():  # with its first numbers it repeats one token whatever is changed
        if parameter.dim() == 2:
            parameter.data.normal_(std=0.4)
    for name in ("base", "plain"):
        model.save_pretrained(folder / name)
    for name, config in CONFIGS.items():
        base = AutoModelForCausalLM.from_pretrained(folder / "base")
        model = orthotune.get_peft_model(base, config())
        torch.manual_seed(1)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.normal_(std=0.05 if name == "neumann" else 0.5)
        model.save_pretrained(folder / name)
    run = folder / "run"
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder / "base"), folder / "oft").save_pretrained(
        run / "adapter"
    )
    (run / "run.json").write_text(json.dumps({"recipe": "sft", "settings": {"model": str(folder / "base")}}))
    full = folder / "full"
    save_model(full / "model", dtype="float32", chat=True)
    (full / "run.json").write_text(json.dumps({"recipe": "sft", "settings": {"model": str(folder / "base")}}))
    (folder / "images").mkdir()
    (folder / "images" / "run.json").write_text(json.dumps({"recipe": "subject", "settings": {}}))
    (folder / "started").mkdir()
    (folder / "started" / "settings.json").write_text("{}")
    (folder / "empty").mkdir()
    return folder


@pytest.fixture(scope="module", params=list(CONFIGS))
def opened(made: Path, request: pytest.FixtureRequest) -> OpenedModel:
    return open_model(made / request.param)


def _expected(model: Any, base: Path, prompt: str, limit: int = 10) -> str:
    """Greedy tokens of plain transformers after the chat template."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    asked = [{"role": "user", "content": prompt}]
    ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.inference_mode():
        found = model.eval().generate(**ids, max_new_tokens=limit, do_sample=False)
    return str(tokenizer.decode(found[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))


@pytest.mark.parametrize("strength", [1.0, 0.5, 0.0])
def test_the_adapter_at_a_strength_is_the_adapter_that_rewinding_writes(
    made: Path, opened: OpenedModel, strength: float, tmp_path: Path
) -> None:
    """For rotations R^t, for LoRA t B A; strength 0 is the base."""
    found = generate(opened, PROMPT, strength=strength, both=True, decoding=FEW)[0]
    base = AutoModelForCausalLM.from_pretrained(made / "base")
    assert found.base == _expected(base, made / "base", PROMPT)
    if strength == 0:
        assert found.text == found.base
        return
    written = orthotune.rewind(Path(opened.source), strength, tmp_path / "written").out
    assert found.text == _expected(PeftModel.from_pretrained(base, written), made / "base", PROMPT)
    assert found.text != found.base and found.strength == strength and 0 < found.tokens <= 10


def test_a_run_is_its_adapter_on_its_model(made: Path) -> None:
    run, adapter = (generate(made / name, PROMPT, decoding=FEW)[0] for name in ("run", "oft"))
    assert run == adapter and orthotune.generate is generate


def test_what_is_streamed_is_what_is_returned(opened: OpenedModel) -> None:
    pieces: dict[tuple[int, bool], str] = {}

    def write(number: int, on: bool, text: str) -> None:
        pieces[number, on] = pieces.get((number, on), "") + text

    found = generate(opened, [PROMPT, "RED"], both=True, system="S", decoding=FEW, write=write)
    assert pieces == {(n, on): one.text if on else one.base for n, one in enumerate(found) for on in (True, False)}


def test_sampling_is_decided_by_the_seed_alone(opened: OpenedModel) -> None:
    asked = [generate(opened, PROMPT, decoding=Decoding(10, 1.0, 0.9, seed=seed))[0].text for seed in (0, 0, 1)]
    state = torch.get_rng_state()
    assert asked[0] == asked[1] != asked[2]
    generate(opened, PROMPT, decoding=Decoding(3, 1.0))
    assert torch.equal(state, torch.get_rng_state())


def test_a_model_without_a_template_continues_the_text(made: Path) -> None:
    model = open_model(made / "plain")
    assert not model.has_template
    tokenizer = AutoTokenizer.from_pretrained(made / "plain")
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    expected = tokenizer.decode(model.model.generate(ids, max_new_tokens=10, do_sample=False)[0, ids.shape[1] :])
    assert generate(model, PROMPT, decoding=FEW)[0].text == expected.replace("<end>", "")
    with_template = generate(made / "base", PROMPT, plain=True, decoding=FEW)[0].text
    assert with_template == generate(made / "plain", PROMPT, decoding=FEW)[0].text


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lambda: LoraConfig(r=2, target_modules=["q_proj"], use_dora=True), "DoRA, whose magnitudes have no strength"),
        (lambda: LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]), "modules_to_save: lm_head"),
        (lambda: orthotune.OFTConfig(r=2, target_modules=["q_proj"], bias="all"), "biases"),
        (lambda: LNTuningConfig(target_modules=["norm"]), "neither OFT nor LoRA"),
    ],
    ids=["dora", "saved", "bias", "other"],
)
def test_parts_without_a_strength_are_refused(config: Any, message: str) -> None:
    model = orthotune.get_peft_model(make_model(), config())
    set_strength(model, 1)
    with pytest.raises(ConfigError, match=message):
        set_strength(model, 0.5)


@pytest.mark.parametrize("method", ["oft", "lora"])
def test_strengths_of_layers_are_those_of_a_rewound_file(made: Path, tmp_path: Path, method: str) -> None:
    """One at its own strength, one at 0, the others as trained: as an adapter that `rewind` wrote at these."""
    opened = open_model(made / method)
    names = layer_names(opened.model)
    strengths = {names[0]: 0.3, names[1]: 0.0}
    rewind(made / method, strengths, tmp_path / "rewound")
    expected = open_model(tmp_path / "rewound", base=opened.base)
    ids = torch.tensor([opened.tokens([{"role": "user", "content": PROMPT}])])
    set_strength(opened.model, strengths)
    with torch.no_grad():
        ours, theirs = opened.model(ids).logits, expected.model(ids).logits
        # Powers are rounded once in the file and once in the layer, and the model passes a difference on, in float32:
        # 3e-5 was seen; another strength of one layer changes logits by more than 0.1.
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4)
        set_strength(opened.model, 1.0)
        assert (opened.model(ids).logits - ours).abs().max() > 0.1
        set_strength(opened.model, dict.fromkeys(names, 0.0))
        without = opened.model(ids).logits
        with opened.model.disable_adapter():
            torch.testing.assert_close(opened.model(ids).logits, without, rtol=0, atol=2e-4)
    found = generate(opened, PROMPT, strength=strengths, decoding=FEW)[0]
    assert found.strength == strengths and found.text == generate(expected, PROMPT, decoding=FEW)[0].text
    for wrong, message in (({"layers.9.q_proj": 1.0}, "no such layer"), ({names[0]: float("nan")}, "finite")):
        with pytest.raises(ConfigError, match=message):
            set_strength(opened.model, wrong)


# Chat


def _talk(opened: OpenedModel, *lines: str, **options: Any) -> tuple[list[dict[str, str]], str]:
    shown: list[str] = []
    return chat(opened, lines, shown.append, decoding=Decoding(max_tokens=4), **options), "".join(shown)


def test_the_commands_of_a_chat(opened: OpenedModel) -> None:
    on, off, half = (generate(opened, "hi", strength=t, decoding=Decoding(4))[0].text for t in (1.0, 0.0, 0.5))
    dialogue, shown = _talk(
        opened, "hi", "/reset", "/off", "hi", "/reset", "/on", "/strength 0.5", "hi", "/reset", "/both", "hi",
        "/strength much", "/wrong", "/quit", "never",
    )  # fmt: skip
    parts = shown.split("\n")
    for text in (on, off, half):
        assert any(text.split("\n")[0] in part for part in parts)
    assert "Adapter: off" in shown and "Adapter: on, strength 0.5" in shown and "Adapter: off and on" in shown
    assert "/strength much. Needed: a number" in shown and "command /wrong. Found: no such command" in shown
    assert [one["content"] for one in dialogue] == ["hi", half] and "never" not in shown
    # the chat gives the model back as it was
    assert generate(opened, "hi", decoding=Decoding(4))[0].text == on


def test_a_dialogue_is_continued_and_shortened_to_what_the_model_reads(made: Path) -> None:
    model = open_model(made / "base")
    dialogue, shown = _talk(model, "one", "two", system="S")
    assert [one["role"] for one in dialogue] == ["system", "user", "assistant", "user", "assistant"]
    dialogue, shown = _talk(model, *["a message"] * 5, system="S")  # 64 tokens are all that the model reads
    assert "the oldest 2 messages are dropped" in shown and dialogue[0] == {"role": "system", "content": "S"}
    notes = reply(model, dialogue, "a message", decoding=Decoding(max_tokens=4)).notes
    assert len(notes) == 1 and notes[0].startswith("(the oldest")
    assert "reads" in _talk(model, "x" * 80)[1] or "Needed: fewer than 64" in _talk(model, "x" * 80)[1]


def test_a_reply_is_that_of_the_chat(opened: OpenedModel) -> None:
    """The same dialogue, one exchange at a time; the model is given back as it was."""
    before = opened.tokens([{"role": "user", "content": "hi"}])
    dialogue, shown = _talk(opened, "/strength 0.5", "/both", "one", "two")
    messages: list[dict[str, str]] = []
    for text in ("one", "two"):
        found = reply(opened, messages, text, strength=0.5, both=True, decoding=Decoding(max_tokens=4))
        messages = found.messages
        assert found.base is not None and f"[off] {found.base}" in shown and f"[on, 0.5] {found.text}" in shown
    assert messages == dialogue and opened.tokens([{"role": "user", "content": "hi"}]) == before
    assert generate(opened, "hi", decoding=Decoding(4))[0].text == _talk(opened, "hi")[0][-1]["content"]
    per_layer = reply(opened, [], "one", strength=dict.fromkeys(layer_names(opened.model), 0.0), both=True)
    assert per_layer.text == per_layer.base
    with pytest.raises(ConfigError, match="the message. Found: an empty text"):
        reply(opened, messages, "  ")


def test_ctrl_c_within_an_answer_ends_this_answer_alone(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_model(made / "base")
    calls = iter([True, False])
    real = model.model.generate

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        if next(calls):
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(model.model, "generate", interrupted)
    dialogue, shown = _talk(model, "one", "two")
    assert "(stopped)" in shown and dialogue[0]["content"] == "two"


# The command line


def test_prompts_of_a_file_as_json(made: Path, tmp_path: Path) -> None:
    (tmp_path / "few.jsonl").write_text('{"prompt": "RED"}\n{"prompt": "blue"}\n')
    words = ["generate", str(made / "oft"), PROMPT, "-f", str(tmp_path / "few.jsonl"), "--both", "--max-tokens", "5"]
    result = CliRunner().invoke(app, [*words, "--json", "-t", "0.5"])
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    assert [row["prompt"] for row in rows] == [PROMPT, "RED", "blue"]
    assert {row["strength"] for row in rows} == {0.5} and all(row["base"] is not None for row in rows)
    shown = CliRunner().invoke(app, words).stdout
    assert "[1, adapter off] " in shown and "[3, adapter strength 1] blue" in shown


def test_a_chat_reads_a_pipe(made: Path) -> None:
    result = CliRunner().invoke(app, ["chat", str(made / "run"), "--max-tokens", "4"], input="hi\n/off\nhi\n/quit\n")
    assert result.exit_code == 0 and "Adapter: off" in result.output, result.output
    assert CliRunner().invoke(app, ["chat", str(made / "run")], input="").exit_code == 0


WRONG: list[tuple[list[str], str]] = [
    (["no/such/run", "hi"], "no such run, adapter or model"),
    (["text-wrld", "hi"], "Did you mean text-world?"),
    (["{made}/bsae", "hi"], "Did you mean {made}/base?"),
    (["{made}/oft", " "], "the prompt. Found: an empty text"),
    (["{made}/oft"], "the prompt. Found: an empty text"),
    (["{made}/base", "hi", "--both"], "a model without an adapter"),
    (["{made}/full", "hi", "-t", "0.5"], "a model without an adapter"),
    (["{made}/oft", "hi", "-t", "nan"], "Needed: a finite number"),
    (["{made}/lora", "hi", "-t", "inf"], "Needed: a finite number"),
    (["{made}/images", "hi"], "an image model"),
    (["{made}/started", "hi"], "the run is not finished"),
    (["{made}/empty", "hi"], "{made}/empty"),
    (["{made}/oft", "hi", "--base", "text-world"], "Load the adapter on the base model that it was trained on"),
    (["{made}/lora", "hi", "--base", "text-world"], "the base model that the adapter was trained on"),
    (["{made}/oft", "hi", "--temperature", "-1"], "temperature=-1"),
    (["{made}/oft", "hi", "--top-p", "0.5"], "top_p=0.5"),
    (["{made}/oft", "hi", "--max-tokens", "0"], "max_tokens=0"),
    (["{made}/oft", "x" * 70], "Needed: fewer than 64"),
    (["{made}/oft", "hi", "--dtype", "int3"], "--dtype int3"),
    (["{made}/oft", "-f", "{made}/none.txt"], "none.txt. Found: no such file"),
    (["{made}/base", "hi", "--base", "text-world"], "a model, not an adapter"),
]


@pytest.mark.parametrize(("words", "message"), WRONG, ids=[" ".join(words)[:60] for words, _ in WRONG])
def test_wrong_input_is_worded(made: Path, words: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["generate", *(word.format(made=made) for word in words)])
    assert result.exit_code == 2, result.output
    assert message.format(made=made) in result.stderr and "Traceback" not in result.output
    assert len(result.stderr.strip().splitlines()) <= 3


def test_a_template_that_refuses_is_worded(made: Path) -> None:
    model = open_model(made / "base")
    own = model.tokenizer.chat_template
    model.tokenizer.chat_template = "{{ raise_exception('no system role here') }}"
    try:
        with pytest.raises(OrthotuneError, match="no system role here. .*Leave out the system prompt"):
            generate(model, "hi", system="S")
    finally:
        model.tokenizer.chat_template = own
