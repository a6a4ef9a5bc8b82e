"""Tiny models without pretraining, made from their config by a word: recipes run on them without any download."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from orthotune.files.atomic import atomic_write
from orthotune.files.installed_worlds import cached_model
from orthotune.worlds.tone_words import WORDS

VIT, WHISPER, LLAVA = "tiny-vit", "tiny-whisper", "tiny-llava"


def tiny_model(word: str) -> Path | None:
    """The folder of a tiny model, which is made in the cache when it is first asked for; None for any other word.

    The weights are random and always the same ones, so that an adapter of such a model can be loaded again.

    Args:
        word: ``tiny-vit``, ``tiny-whisper`` or ``tiny-llava``.

    Raises:
        OutputError: the cache cannot be written to.

    Example:
        >>> tiny_model("google/vit-base-patch16-224") is None
        True
    """
    if word not in MAKERS:
        return None
    folder = cached_model(word)
    if not (folder / "config.json").is_file():
        with torch.random.fork_rng(), _without_bars(), atomic_write(folder) as partial:
            torch.manual_seed(0)
            for part in MAKERS[word]():
                part.save_pretrained(partial)
    return folder


@contextmanager
def _without_bars() -> Iterator[None]:
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _vit() -> list[Any]:
    """A vision transformer for images of 32 pixels: 3 layers of 64 features, 0.1 million parameters.

    Its weights are six times as large as usual before pretraining: frozen ones must already tell images apart.
    """
    import transformers
    from transformers import ViTConfig, ViTModel

    # Older versions have the processor of Pillow under the plain name.
    processor: Any = getattr(transformers, "ViTImageProcessorPil", None) or transformers.ViTImageProcessor

    config = ViTConfig(
        image_size=32,
        patch_size=8,
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=128,
        initializer_range=0.125,
    )
    side = {"height": 32, "width": 32}
    return [ViTModel(config, add_pooling_layer=False), processor(size=side)]


def _whisper() -> list[Any]:
    """A Whisper for recordings of one second and the letters of ``tone_words``: two layers each of 64 features.

    Its weights are six times as large as usual, as those of the vision transformer.
    """
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperProcessor,
        WhisperTokenizer,
    )

    letters = sorted({letter for word in WORDS for letter in word})
    # Whisper takes every token behind <|notimestamps|> for a time.
    tokens = ["<|pad|>", *letters, "Ġ", "<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>"]
    numbers = {token: number for number, token in enumerate(tokens)}
    end, start, plain = (numbers[token] for token in tokens[-3:])
    ids: dict[str, Any] = {
        "bos_token_id": end, "eos_token_id": end, "pad_token_id": 0, "decoder_start_token_id": start,
    }  # fmt: skip
    model = WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=len(tokens), num_mel_bins=32, d_model=64, encoder_layers=2, decoder_layers=2,
            encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=128, decoder_ffn_dim=128,
            max_source_positions=50, max_target_positions=32, suppress_tokens=None, begin_suppress_tokens=None,
            init_std=0.125, **ids,
        )
    )  # fmt: skip
    model.generation_config = GenerationConfig(is_multilingual=False, no_timestamps_token_id=plain, **ids)
    special = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    tokenizer = WhisperTokenizer(vocab=numbers, merges=[], pad_token="<|pad|>", **special)
    tokenizer.add_special_tokens({"additional_special_tokens": tokens[-2:]})
    return [model, WhisperProcessor(WhisperFeatureExtractor(feature_size=32, chunk_length=1), tokenizer)]


#: The template of the tiny model's dialogues: a line for each message, with a mark for each image.
TEMPLATE = """{% for message in messages %}{{ message['role'] }}: {% if message['content'] is string %}\
{{ message['content'] }}{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>{% else %}\
{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<end>{% endfor %}\
{% if add_generation_prompt %}assistant: {% endif %}"""


def _llava() -> list[Any]:
    """A Llava for images of 32 pixels that reads and writes bytes: two layers each of 64 features.

    Its weights are six times as large as usual, as those of the vision transformer.
    """
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    numbers = {token: number for number, token in enumerate(["<end>", "<pad>", "<image>", *letters])}
    inner = Tokenizer(models.BPE(numbers, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<end>", pad_token="<pad>", additional_special_tokens=["<image>"]
    )
    kind: Any = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    images = kind(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = LlavaProcessor(
        images, tokenizer, patch_size=8, vision_feature_select_strategy="default", chat_template=TEMPLATE,
        image_token="<image>", num_additional_image_tokens=1,
    )  # fmt: skip
    sizes: dict[str, Any] = {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "initializer_range": 0.125,
    }  # fmt: skip
    text = LlamaConfig(
        **sizes, vocab_size=len(numbers), num_key_value_heads=4, max_position_embeddings=256, bos_token_id=0,
        eos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    vision = CLIPVisionConfig(**sizes, image_size=32, patch_size=8, projection_dim=64)
    # The last layer's states, where others take those before it: every layer then has a gradient.
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=2, vision_feature_layer=-1)
    return [LlavaForConditionalGeneration(config), processor]


#: word -> what makes the model and its processor
MAKERS: dict[str, Callable[[], list[Any]]] = {VIT: _vit, WHISPER: _whisper, LLAVA: _llava}
