"""``export --to gguf``: what transformers reads from the file computes as the merged model, tokens included."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from orthotune import OFTConfig, export, get_peft_model
from orthotune.errors import ConfigError, MergeError, OutputError
from orthotune.operations.gguf_file import architectures, vocabulary
from orthotune.operations.gguf_file.modelfile import chat_form_of, modelfile
from tests.support import checkpoint_models
from tests.support.adapter_files import onetrainer
from tests.support.contract_cases import randomize, seeded
from tests.support.tiny_text import CHAT

gguf = pytest.importorskip("gguf", reason="GGUF files need the extra gguf")

#: Uneven sizes; transformers reads the head sizes of Qwen 3 (128) and the scale of Gemma (256) from nowhere.
SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 270, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 0,
    "pad_token_id": 1, "tie_word_embeddings": False,
}  # fmt: skip
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {"rope_theta": 5000.0}),
    "mistral": ("MistralConfig", {"sliding_window": None, "head_dim": 16}),
    "qwen2": ("Qwen2Config", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", {"head_dim": 128, "num_attention_heads": 2, "num_key_value_heads": 1}),
    "gemma2": (
        "Gemma2Config",
        {"head_dim": 256, "num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": True},
    ),
    "gemma3": ("Gemma3TextConfig", {"head_dim": 256, "num_attention_heads": 2, "num_key_value_heads": 1}),
}
GEMMAS = {"gemma2": "gelu_pytorch_tanh", "gemma3": "gelu_pytorch_tanh"}


def byte_tokenizer() -> Any:
    """Bytes, and a few merges of them; one token is added to it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<end>", "<pad>", *letters, "th", "the", "\u0120the"]
    tokenizer = Tokenizer(
        models.BPE({t: i for i, t in enumerate(tokens)}, [("t", "h"), ("th", "e"), ("\u0120", "the")])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>", bos_token="<end>")
    fast.add_tokens(["<think>"])
    fast.chat_template = CHAT
    return fast


def save_base(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    import transformers

    kind, fields = MODELS[name]
    if name in GEMMAS:
        fields = {"hidden_activation": GEMMAS[name]} | fields
    with seeded(4):
        model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, kind)(**SIZES | fields))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter.data, std=0.2)
    model.to(dtype).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def save_adapter(base: Path, folder: Path) -> Path:
    from transformers import AutoModelForCausalLM

    targets = ["q_proj", "k_proj", "down_proj"]
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        OFTConfig(oft_block_size=4, target_modules=targets, use_cayley_neumann=False),
    )
    randomize(model).save_pretrained(folder)
    return folder


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model.eval()(torch.arange(20).view(2, 10) * 13 % 259).logits


def expected(base: Path, adapter: Path, out: Path, rounded: Callable[[Tensor], Tensor]) -> Any:
    """The merged model, its matrices rounded as the file's type rounds them."""
    from transformers import AutoModelForCausalLM

    export(adapter, out, base, "dense")
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(rounded(parameter))
    return model


@pytest.mark.parametrize("name", MODELS)
def test_the_file_computes_as_the_merged_model(name: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    base = save_base(name, tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "adapter")
    done = export(adapter, tmp_path / "out", base, "gguf")
    assert done.gguf is not None and done.gguf.by == "gguf" and done.gguf.file == "out-f16.gguf"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"out-f16.gguf", "Modelfile"}
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "out", gguf_file=done.gguf.file, dtype=torch.float32)
    wanted = logits(expected(base, adapter, tmp_path / "dense", lambda W: W.half().float()))
    # the same numbers; norms of Gemma pass through 1 + w and back, half a unit of float32 each
    torch.testing.assert_close(logits(read), wanted, rtol=0, atol=2e-4 if name in GEMMAS else 1e-5)
    assert (logits(read) - logits(AutoModelForCausalLM.from_pretrained(base))).abs().max() > 0.1


@pytest.mark.parametrize("kind", ["bf16", "q8_0"])
def test_other_types_of_weights(kind: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    base = save_base("llama", tmp_path / "base", torch.bfloat16)
    adapter = save_adapter(base, tmp_path / "adapter")
    file = export(adapter, tmp_path / "out", base, "gguf", gguf_type=kind).gguf.file
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "out", gguf_file=file, dtype=torch.float32)

    def eight_bits(W: Tensor) -> Tensor:
        blocks = W.reshape(-1, 32)
        scale = blocks.abs().amax(1, keepdim=True) / 127
        return ((blocks / scale).round() * scale.half().float()).view(W.shape)

    wanted = expected(base, adapter, tmp_path / "dense", eight_bits if kind == "q8_0" else lambda W: W)
    # queries and keys are stored in another order of rows, which blocks along rows do not see; a number between two
    # steps of 8 bits may be rounded to either
    torch.testing.assert_close(logits(read), logits(wanted), rtol=0, atol=0.05 if kind == "q8_0" else 1e-5)


def test_the_tokenizer_is_inside(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    base = save_base("qwen2", tmp_path / "base")
    file = export(save_adapter(base, tmp_path / "adapter"), tmp_path / "out", base, "gguf").gguf.file
    before, after = AutoTokenizer.from_pretrained(base), AutoTokenizer.from_pretrained(tmp_path / "out", gguf_file=file)
    text = "the other\n thé <think>theme"
    assert after(text)["input_ids"] == before(text)["input_ids"]
    fields = gguf.GGUFReader(tmp_path / "out" / file).fields
    assert fields["tokenizer.chat_template"].contents() == CHAT
    assert fields["tokenizer.ggml.eos_token_id"].contents() == 0
    assert fields["tokenizer.ggml.add_bos_token"].contents() is False
    tokens, types = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "token_type"))
    assert len(tokens) == SIZES["vocab_size"] and tokens[-1] == "[PAD269]"
    assert [types[tokens.index(one)] for one in ("<end>", "<think>", "the", "[PAD269]")] == [3, 4, 1, 5]


def test_pieces_of_sentencepiece(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, normalizers

    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256)), "\u2581", "t", "h", "th", "\u2581th"]
    merges = [("t", "h"), ("\u2581", "th")]
    tokenizer = Tokenizer(
        models.BPE({t: i for i, t in enumerate(tokens)}, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.ByteFallback()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert vocabulary.not_direct(tmp_path) is None
    found = vocabulary.read_vocabulary(tmp_path, 266)
    assert (found.model, found.pre, found.space_prefix) == ("llama", "default", True)
    assert found.types[:4] == [2, 3, 3, 6] and found.tokens[-1] == "[PAD265]"
    scores = dict(zip(found.tokens, found.scores, strict=True))
    assert scores["th"] > scores["\u2581th"] > scores["t"] == scores["h"]
    with pytest.raises(ValueError, match="token of number 263.*263 rows"):
        vocabulary.read_vocabulary(tmp_path, 263)


@pytest.mark.parametrize("fallback", [False, True], ids=["bytes", "pieces"])
def test_changes_of_texts_that_readers_do_not_make_are_not_direct(fallback: bool, tmp_path: Path) -> None:
    def reason(*kinds: str) -> str | None:
        parts = [{"type": kind} for kind in kinds]
        content = {
            "model": {"type": "BPE", "byte_fallback": fallback}, "pre_tokenizer": {"type": "ByteLevel"},
            "normalizer": {"type": "Sequence", "normalizers": parts} if parts else None,
        }  # fmt: skip
        (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
        return vocabulary.not_direct(tmp_path)

    assert reason() is None and reason(*(["Prepend", "Replace"] if fallback else ["NFC"])) is None
    found = reason("Lowercase", "Replace")
    assert found is not None and "Lowercase" in found


@pytest.fixture
def call() -> Callable[..., Any]:
    """The command line, as a shell calls it."""
    from typer.testing import CliRunner

    from orthotune.cli.main import app

    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


def test_other_models_are_left_to_the_converter(tmp_path: Path, call: Callable[..., Any]) -> None:
    base = checkpoint_models.save_base(checkpoint_models.gpt2(), tmp_path / "base")
    adapter = onetrainer(tmp_path / "style.safetensors", {"transformer.h.0.attn.c_attn": 16})
    words = ("export", adapter, tmp_path / "out", "--base", base, "--to", "gguf", "--gguf-type", "bf16")
    done = call(*words)
    assert done.exit_code == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if "convert_hf_to_gguf.py" in line)
    assert str(tmp_path / "out" / "merged") in line and line.endswith("--outtype bf16")
    assert (tmp_path / "out" / "merged" / "model.safetensors").is_file() and "GPT2LMHeadModel" in done.stdout
    # a converter that is named is called on the merged model, which is then removed
    script = tmp_path / "convert_hf_to_gguf.py"
    script.write_text(
        "import sys, pathlib\nmerged, _, out, _, kind = sys.argv[1:]\n"
        "assert (pathlib.Path(merged) / 'model.safetensors').is_file()\npathlib.Path(out).write_text(kind)\n"
    )
    done = call(*words, "--overwrite", "--converter", tmp_path)
    assert done.exit_code == 0, done.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"out-bf16.gguf", "Modelfile"}
    script.write_text("raise SystemExit('no model of this kind')")
    done = call(*words, "--overwrite", "--converter", script)
    assert done.exit_code != 0 and "no model of this kind" in done.stderr
    assert (tmp_path / "out" / "out-bf16.gguf").is_file()


def test_what_readers_would_take_for_another_model_is_not_direct() -> None:
    import transformers

    def reason(name: str, **fields: Any) -> str | None:
        kind, own = MODELS[name]
        config = getattr(transformers, kind)(**SIZES | own | fields)
        config.architectures = [kind.replace("TextConfig", "ForCausalLM").replace("Config", "ForCausalLM")]
        return architectures.not_direct(config)

    assert all(reason(name) is None for name in MODELS)
    scaled = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    assert "rope_type=linear" in reason("llama", rope_parameters=scaled)
    assert "attention_bias" in reason("llama", attention_bias=True)
    assert "gelu" in reason("llama", hidden_act="gelu")
    assert "sliding window of 8" in reason("mistral", sliding_window=8)
    assert "query_pre_attn_scalar=64" in reason("gemma2", query_pre_attn_scalar=64)
    assert "softcapping" in reason("gemma2", final_logit_softcapping=None)
    assert "final_logit_softcapping=30.0" in reason("gemma3", final_logit_softcapping=30.0)
    assert "another order" in reason("gemma3", layer_types=["full_attention"] * 2)


def test_a_name_that_ends_in_gguf_is_the_file(tmp_path: Path, call: Callable[..., Any]) -> None:
    base = save_base("llama", tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "adapter")
    folder = export(adapter, tmp_path / "folder", base, "gguf", gguf_type="q8_0")
    assert folder.gguf is not None
    done = call("export", adapter, tmp_path / "m.gguf", "--base", base, "--to", "gguf", "--gguf-type", "q8_0")
    assert done.exit_code == 0, done.stderr
    assert (tmp_path / "m.gguf").read_bytes() == (tmp_path / "folder" / folder.gguf.file).read_bytes()
    assert {path.name for path in tmp_path.iterdir()} - {".m.gguf.export.lock"} == {
        "base", "adapter", "folder", "m.gguf",
    }  # fmt: skip


def test_a_file_that_the_library_does_not_write_needs_the_converter(tmp_path: Path, call: Callable[..., Any]) -> None:
    base = checkpoint_models.save_base(checkpoint_models.gpt2(), tmp_path / "base")
    adapter = onetrainer(tmp_path / "style.safetensors", {"transformer.h.0.attn.c_attn": 16})
    words = ("export", adapter, tmp_path / "m.gguf", "--base", base, "--to", "gguf")
    done = call(*words)
    assert done.exit_code != 0 and "GPT2LMHeadModel" in done.stderr and "name a folder" in done.stderr
    assert not (tmp_path / "m.gguf").exists()
    script = tmp_path / "convert_hf_to_gguf.py"
    script.write_text(
        "import sys, pathlib\nmerged, _, out, _, kind = sys.argv[1:]\n"
        "assert (pathlib.Path(merged) / 'model.safetensors').is_file()\npathlib.Path(out).write_text(kind)\n"
    )
    done = call(*words, "--converter", tmp_path)
    assert done.exit_code == 0, done.stderr
    assert (tmp_path / "m.gguf").read_text(encoding="utf-8") == "f16"


def test_wrong_words_and_numbers_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    base = save_base("llama", tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "adapter")
    with pytest.raises(ConfigError, match="gguf-type q4"):
        export(adapter, tmp_path / "out", base, "gguf", gguf_type="q4")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="only with gguf"):
        export(adapter, tmp_path / "out", base, "dense", gguf_type="f16")
    with pytest.raises(OutputError, match="an image model"):
        export(adapter, tmp_path / "out.safetensors", base / "model.safetensors", "gguf")
    tensors = load_file(base / "model.safetensors")
    tensors["lm_head.weight"][3, 5] = 1e6
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(MergeError, match=r"'lm_head.weight' as float16.*1e\+06.*bf16"):
        export(adapter, tmp_path / "out", base, "gguf")
    assert not (tmp_path / "out").exists()


def _template(default: str = "", begin: str = "") -> Callable[[list[dict[str, str]]], str]:
    def render(messages: list[dict[str, str]]) -> str:
        first = f"<|system|>{default}<|end|>\n" if default and messages[0]["role"] != "system" else ""
        form = "".join(f"<|{m['role']}|>{m['content']}<|end|>\n" for m in messages)
        return f"{begin}{first}{form}<|assistant|>"

    return render


@pytest.mark.parametrize("default", ["", "Be kind."])
def test_a_chat_template_of_turns_is_translated(default: str) -> None:
    render = _template(default)
    form = chat_form_of(render)
    assert form is not None and form.default_system == default
    dialogue = [{"role": r, "content": r[:2]} for r in ("system", "user", "assistant", "user", "assistant", "user")]
    assert form.render(dialogue) == render(dialogue) and form.render(dialogue[1:]) == render(dialogue[1:])


def test_a_template_cannot_write_lines_of_the_modelfile() -> None:
    class Hostile:
        chat_template, bos_token, bos_token_id, eos_token = "x", None, None, 'a"\nADAPTER /etc/passwd'

        def __init__(self, default: str) -> None:
            self.render = _template(default)

        def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> str:
            return self.render(messages).replace("<|end|>", '<|end|>"""\nFROM other\n')

    for default in ("", 'kind"""\nFROM elsewhere'):
        lines = modelfile("model.gguf", Hostile(default)).splitlines()
        assert lines[0] == "FROM ./model.gguf" and len(lines) == 2 and lines[1].startswith(("TEMPLATE", "#"))


def test_other_chat_templates_are_not_guessed() -> None:
    assert chat_form_of(lambda messages: f"{len(messages)}: {messages[-1]['content']}") is None
    assert chat_form_of(lambda messages: _template()(messages).replace("<<answer>>", "<<answer>>!")) is None


def test_without_the_library_the_command_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = save_base("llama", tmp_path / "base")
    monkeypatch.setitem(sys.modules, "gguf", None)  # what an import finds where it is not installed
    made = export(save_adapter(base, tmp_path / "adapter"), tmp_path / "out", base, "gguf").gguf
    assert made is not None and "orthotune[gguf]" in made.reason and "convert_hf_to_gguf.py" in made.command
