"""Captions by a local model: what follows instructions, what only sees the image, what is kept and edited."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from orthotune.errors import ConfigError, DataError, RecipeError
from orthotune.image.data.written_captions import Wording, replacements, write_captions
from orthotune.worlds.tiny_models import LLAVA, tiny_model

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "nine", "on", "grass"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(3):
        Image.new("RGB", (20, 28), (90 * number, 40, 200)).save(tmp_path / f"{number}.png")
    (tmp_path / "1.txt").write_text("mine", encoding="utf-8")
    return tmp_path


def _blip(folder: Path) -> Path:
    """A captioner that is asked nothing, tiny, with random numbers."""
    from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

    torch.manual_seed(0)
    inner = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**inner, "vocab_size": len(WORDS), "encoder_hidden_size": 16, "projection_dim": 16, "bos_token_id": 2,
            "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0, "max_position_embeddings": 32}  # fmt: skip
    vision = {**inner, "image_size": 16, "patch_size": 8, "projection_dim": 16}
    model = BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision, projection_dim=16))
    (folder / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    tokenizer = BertTokenizer.from_pretrained(str(folder))
    model.save_pretrained(folder)
    BlipProcessor(BlipImageProcessor(size={"height": 16, "width": 16}), tokenizer).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["asked", "shown"])
def test_captions_are_written_where_none_are(kind: str, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    model = tiny_model(LLAVA) if kind == "asked" else _blip(tmp_path_factory.mktemp("blip"))
    assert model is not None
    seen: list[tuple[int, int]] = []
    wording = Wording(prefix="sks, ", suffix=" end", max_tokens=4)
    found = write_captions(folder, model, wording=wording, batch_size=2, show=lambda *now: seen.append(now))
    assert list(found) == ["0", "2"] and seen == [(2, 2)]
    for name, text in found.items():
        assert (folder / f"{name}.txt").read_text(encoding="utf-8") == text + "\n"
        assert text.startswith("sks, ") and text.endswith(" end") and "image in one sentence" not in text
    assert (folder / "1.txt").read_text(encoding="utf-8") == "mine"
    assert write_captions(folder, model, wording=wording) == {}
    again = write_captions(folder, model, wording=wording, overwrite=True, batch_size=1)
    assert again.keys() == {"0", "1", "2"} and {name: again[name] for name in found} == found


def test_what_is_no_captioner_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="the caption model .*Needed: an image-to-text model"):
        write_captions(folder, tmp_path / "nothing-here")
    with pytest.raises(DataError, match="no such folder"):
        write_captions(tmp_path / "lost", "models/blip")
    with pytest.raises(ConfigError, match="--replace dog. Needed: OLD=NEW"):
        replacements(["dog"])
