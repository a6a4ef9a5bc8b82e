"""Recognition of speech: three methods on a tiny Whisper, exact at the start, resumed, reloaded and merged."""

from __future__ import annotations

import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSpeechSeq2Seq

from orthotune.errors import OrthotuneError, RecipeError
from orthotune.metrics.word_errors import errors_in_words, word_error_rate
from orthotune.recipes.load import load_settings
from orthotune.recipes.speech import Recordings, SpeechSettings, job, run
from orthotune.recipes.text_job import adapter_config
from orthotune.runs.recordings import read_recording
from orthotune.text.headed_model import adapted
from orthotune.worlds.tiny_models import tiny_model
from orthotune.worlds.tone_words import tone_words
from tests.support.head_runs import TOLERANCE, check_resumed, lines, merged, reloaded, silent
from tests.support.tiny_text import write_jsonl

KIND = AutoModelForSpeechSeq2Seq
METHODS = ("oft", "lora", "full")


def write_wav(path: Path, samples: torch.Tensor, rate: int = 16_000, width: int = 2, channels: int = 1) -> Path:
    whole = {1: (127, torch.uint8), 2: (32767, torch.int16), 4: (2**31 - 1, torch.int32)}[width]
    values = samples.double() * whole[0] + (128 if width == 1 else 0)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(values.round().to(whole[1]).repeat_interleave(channels).numpy().tobytes())
    return path


def recordings(folder: Path, count: int, source: str = "tone-words") -> Path:
    """WAV files of uneven lengths and a table of them."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, (_, samples, text) in enumerate(tone_words(source, count)):
        write_wav(folder / f"{number}.wav", samples)
        rows.append({"audio": f"{number}.wav", "text": text})
    return write_jsonl(folder / "table.jsonl", rows)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Any:
    cache = tmp_path_factory.mktemp("cache")
    data = recordings(tmp_path_factory.mktemp("speech"), 20)

    def make(output: Path, **more: Any) -> SpeechSettings:
        values: dict[str, Any] = {"model": "tiny-whisper", "data": str(data), "steps": 4, "held_out": 0.2}
        values |= {"batch_size": 4, "learning_rate": 1e-2, "warmup": 0, "save_every": 2, "max_length": 12}
        values |= {"eval_every": 4}
        if more.get("method", "oft") == "oft":
            values["block_size"] = 8
        return SpeechSettings(**(values | more), output=output)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ORTHOTUNE_CACHE", str(cache))
        yield make


@pytest.fixture(scope="module")
def runs(given: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("runs")
    old = recordings(folder / "old", 3, "tone-words/held_out")
    settings = {method: given(folder / method, method=method, old_data=str(old)) for method in METHODS}
    return {method: (one, run(one, silent, bar=False)) for method, one in settings.items()}


def _logits(model: Any, settings: SpeechSettings) -> torch.Tensor:
    """Of the held-out recordings, the transcripts given."""
    parts = job(settings)
    processor, rows = parts.tokenizer(), parts.data().domains["new"]
    collate = Recordings(processor, model.config.decoder_start_token_id)
    batch = collate([(one.recording.samples, processor.tokenizer(one.text).input_ids) for one in rows])
    with torch.no_grad():
        logits: torch.Tensor = model(**batch).logits
    return logits


@pytest.mark.parametrize("method", METHODS)
def test_a_run_measures_saves_and_reloads(runs: Any, method: str) -> None:
    settings, record = runs[method]
    assert record.scores_after.keys() == {"word_error_rate", "loss", "old_word_error_rate", "old_loss"}
    assert record.scores_after["loss"] < record.scores_before["loss"]
    steps = lines(settings.output)
    assert steps[-1]["gain"] == steps[0]["word_error_rate"] - steps[-1]["word_error_rate"]
    model = reloaded(KIND, tiny_model("tiny-whisper"), settings.output)
    parts = job(settings)
    labels = Recordings(parts.tokenizer(), model.config.decoder_start_token_id)(
        [
            (one.recording.samples, parts.tokenizer().tokenizer(one.text).input_ids)
            for one in parts.data().domains["new"]
        ]
    )["labels"]
    loss = torch.nn.functional.cross_entropy(_logits(model, settings).flatten(0, 1).float(), labels.flatten())
    assert loss.item() == pytest.approx(record.scores_after["loss"], abs=1e-4)


@pytest.mark.parametrize("method", ["oft", "lora"])
def test_merging_keeps_the_logits_and_the_processor(runs: Any, method: str, tmp_path: Path) -> None:
    settings = runs[method][0]
    tuned = reloaded(KIND, tiny_model("tiny-whisper"), settings.output)
    plain = merged(KIND, settings.output, tmp_path / "merged")
    torch.testing.assert_close(_logits(plain, settings), _logits(tuned, settings), **TOLERANCE)
    names = {path.name for path in (tmp_path / "merged").iterdir()}
    assert {"tokenizer.json", "generation_config.json"} <= names
    assert names & {"processor_config.json", "preprocessor_config.json"}


@pytest.mark.parametrize("method", ["oft", "lora"])
def test_before_the_first_step_the_logits_are_those_of_the_base(runs: Any, method: str) -> None:
    settings = runs[method][0]
    parts = job(settings)
    base, model = parts.model(torch.float32).eval(), parts.model(torch.float32).eval()
    model = adapted(model, adapter_config(settings, model, [], parts.task))
    assert torch.equal(_logits(model, settings), _logits(base, settings))


def test_a_run_that_was_cut_ends_with_the_same_bits(runs: Any, tmp_path: Path) -> None:
    settings, _ = runs["oft"]
    check_resumed(run, settings.model_copy(update={"output": tmp_path / "cut"}), settings.output)


@pytest.mark.parametrize(("width", "tolerance"), [(1, 1 / 64), (2, 1e-4), (4, 1e-7)])
def test_wav_files_of_every_width_are_read(width: int, tolerance: float, tmp_path: Path) -> None:
    samples = torch.tensor([0.0, 0.5, -0.75, 0.25])
    write_wav(tmp_path / "a.wav", samples, rate=8000, width=width, channels=2)
    found = read_recording("a.wav", "row 0", tmp_path)
    assert (found.rate, found.seconds) == (8000, 4 / 8000)
    # Half a step of the width, and the scale 127 / 128 of the narrowest.
    torch.testing.assert_close(found.samples, samples, atol=tolerance, rtol=0)


def test_arrays_and_bytes_are_recordings(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", torch.tensor([0.0, 0.5]))
    one = read_recording({"bytes": path.read_bytes(), "path": "a.wav"}, "row 0", tmp_path)
    other = read_recording({"array": [0.0, 0.5], "sampling_rate": 16000}, "row 0", tmp_path)
    torch.testing.assert_close(one.samples, other.samples, atol=1e-4, rtol=0)


def test_words_are_counted_as_jiwer_counts_them() -> None:
    wanted, found = ["a b c d", "e", "f g"], ["b c x d y", "", "g f"]
    assert errors_in_words(wanted, found) == pytest.approx((1 + 2 + 1 + 2) / 7)
    assert word_error_rate(wanted, found) == pytest.approx(errors_in_words(wanted, found))


def _row(**more: Any) -> Callable[[Path], dict[str, Any]]:
    def write(folder: Path) -> dict[str, Any]:
        write_wav(folder / "good.wav", torch.ones(400) * 0.1)
        write_wav(folder / "slow.wav", torch.ones(400) * 0.1, rate=8000)
        write_wav(folder / "none.wav", torch.ones(0))
        (folder / "broken.wav").write_bytes(b"no sound")
        rows = [{"audio": "good.wav", "text": "do"}, {"audio": "good.wav", "text": "re", **more}]
        rows = [{key: value for key, value in row.items() if value is not None} for row in rows]
        return {"data": str(write_jsonl(folder / "table.jsonl", rows))}

    return write


WRONG: dict[str, tuple[Callable[[Path], dict[str, Any]], str]] = {
    "another sampling rate": (_row(audio="slow.wav"), "line 2: .*8000 samples a second. Needed: 16000.*ffmpeg"),
    "a missing file": (_row(audio="lost.wav"), "line 2: .*lost.wav. Found: no such file"),
    "a file that is no recording": (_row(audio="broken.wav"), "broken.wav"),
    "an empty recording": (_row(audio="none.wav"), "without samples"),
    "an empty transcript": (_row(text=" "), "line 2: column 'text'. Found: an empty text"),
    "a missing transcript": (_row(text=None), "Needed: text"),
    "samples without a rate": (_row(audio=[0.0, 0.1]), "without a sampling_rate"),
    "samples that are not finite": (_row(audio={"array": [float("nan")], "sampling_rate": 16000}), "not finite|NaN"),
    "a number as a recording": (_row(audio=5, sampling_rate=16000), r"samples of shape \[\]"),
    "a language of a model of one": (
        lambda folder: {**_row()(folder), "language": "french"},
        "a model of one language",
    ),
    "no such file": (lambda folder: {"data": str(folder / "none.csv")}, "no such file"),
    "no such model": (lambda folder: {**_row()(folder), "model": "./nowhere"}, "no such directory"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_data_is_refused_in_words(case: str, given: Any, tmp_path: Path) -> None:
    spoil, message = WRONG[case]
    (tmp_path / "data").mkdir()
    with pytest.raises(OrthotuneError, match=message):
        run(given(tmp_path / "run", **({"held_out": 0} | spoil(tmp_path / "data"))), silent, bar=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"), [(["max_length=2"], "max_length=2"), (["sampling_rate=8000"], "unknown key 'sampling_rate'")]
)
def test_wrong_settings_are_refused_in_words(words: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_settings(SpeechSettings, None, words)


def test_the_built_in_preset_needs_no_arguments(given: Any) -> None:
    settings = load_settings(SpeechSettings)
    assert settings.model == "tiny-whisper" and len(job(settings).data().domains["new"]) == 60
