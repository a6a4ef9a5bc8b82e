"""Tiny models whose output layer shares its numbers with their embedding; configs say so in different places."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers as tf
from torch import Tensor, nn

_TEXT: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
_T5: dict[str, Any] = {
    "vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2,
    "decoder_start_token_id": 0,
}  # fmt: skip
_VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
           "image_size": 16, "patch_size": 8}  # fmt: skip


def _llama() -> Any:
    return tf.LlamaForCausalLM(tf.LlamaConfig(**_TEXT, tie_word_embeddings=True))


def _gpt2() -> Any:
    return tf.GPT2LMHeadModel(
        tf.GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=32, bos_token_id=1, eos_token_id=2)
    )


def _bert() -> Any:
    return tf.BertForMaskedLM(
        tf.BertConfig(
            vocab_size=40,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=24,
            max_position_embeddings=32,
        )
    )


def _gemma3() -> Any:
    text = tf.Gemma3TextConfig(**_TEXT, head_dim=8, sliding_window=8)
    config = tf.Gemma3Config(
        text_config=text, vision_config=tf.SiglipVisionConfig(**_VISION), mm_tokens_per_image=4, image_token_index=39,
        boi_token_index=38, eoi_token_index=37,
    )  # fmt: skip
    return tf.Gemma3ForConditionalGeneration(config)


def _paligemma() -> Any:
    config = tf.PaliGemmaConfig(
        text_config=tf.GemmaConfig(**_TEXT, head_dim=8), vision_config=tf.SiglipVisionConfig(**_VISION),
        image_token_index=39, projection_dim=16,
    )  # fmt: skip
    return tf.PaliGemmaForConditionalGeneration(config)


def _qwen2_vl() -> Any:
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    config = tf.Qwen2VLConfig(
        text_config={**_TEXT, "tie_word_embeddings": True, "rope_parameters": rope},
        vision_config={"depth": 1, "embed_dim": 16, "num_heads": 2, "hidden_size": 16, "patch_size": 4},
        tie_word_embeddings=True, image_token_id=39, video_token_id=38, vision_start_token_id=37, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    return tf.Qwen2VLForConditionalGeneration(config)


def _llava() -> Any:
    config = tf.LlavaConfig(
        text_config=tf.LlamaConfig(**_TEXT, tie_word_embeddings=True), vision_config=tf.CLIPVisionConfig(**_VISION),
        image_token_index=39, tie_word_embeddings=True,
    )  # fmt: skip
    return tf.LlavaForConditionalGeneration(config)


def _whisper() -> Any:
    config = tf.WhisperConfig(
        vocab_size=40, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, num_mel_bins=8, max_source_positions=20,
        max_target_positions=20, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    return tf.WhisperForConditionalGeneration(config)


def _bart() -> Any:
    config = tf.BartConfig(
        vocab_size=40, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=32, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, forced_eos_token_id=2,
    )  # fmt: skip
    return tf.BartForConditionalGeneration(config)


def _encoder_decoder() -> Any:
    encoder = tf.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=32,
    )  # fmt: skip
    decoder = tf.GPT2Config(
        vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=32, bos_token_id=1, eos_token_id=2,
        is_decoder=True, add_cross_attention=True,
    )  # fmt: skip
    config = tf.EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.pad_token_id = 1, 0
    return tf.EncoderDecoderModel(config=config)


@dataclass(frozen=True)
class Tied:
    """A model, the names of its embedding and its head, and whether its config can say that they are apart."""

    build: Callable[[], Any]
    embedding: str
    head: str
    #: a third module with the same numbers
    third: str | None = None
    #: its forward scales the output where the field is True, so that the field cannot say what is tied
    scales: bool = False
    #: transformers makes the field True whenever it reads the config
    forced: bool = False


TIED: dict[str, Tied] = {
    "llama": Tied(_llama, "embed_tokens", "lm_head"),
    "gpt2": Tied(_gpt2, "wte", "lm_head"),
    "bert": Tied(_bert, "word_embeddings", "decoder"),
    "gemma3": Tied(_gemma3, "embed_tokens", "lm_head"),
    "paligemma": Tied(_paligemma, "embed_tokens", "lm_head"),
    "qwen2_vl": Tied(_qwen2_vl, "embed_tokens", "lm_head"),
    "llava": Tied(_llava, "embed_tokens", "lm_head"),
    "whisper": Tied(_whisper, "model.decoder.embed_tokens", "proj_out"),
    "bart": Tied(_bart, "decoder.embed_tokens", "lm_head", "encoder.embed_tokens"),
    "encoder_decoder": Tied(_encoder_decoder, "wte", "lm_head"),
    "t5": Tied(lambda: tf.T5ForConditionalGeneration(tf.T5Config(**_T5)), "decoder.embed_tokens", "lm_head",
               "encoder.embed_tokens", forced=True),
    "umt5": Tied(lambda: tf.UMT5ForConditionalGeneration(tf.UMT5Config(**_T5)), "decoder.embed_tokens", "lm_head",
                 "encoder.embed_tokens", scales=True),
    "switch": Tied(
        lambda: tf.SwitchTransformersForConditionalGeneration(
            tf.SwitchTransformersConfig(**_T5, num_sparse_encoder_layers=0, num_sparse_decoder_layers=0)
        ),
        "decoder.embed_tokens", "lm_head", "encoder.embed_tokens", scales=True,
    ),
}  # fmt: skip


def make(name: str) -> Any:
    """The model with random numbers in every parameter, biases too, which transformers leaves at zero."""
    torch.manual_seed(0)
    model = TIED[name].build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    """The outputs for a fixed batch."""
    ids, call = torch.arange(3, 15).view(2, 6), dict[str, Any]()
    if hasattr(model.config, "num_mel_bins"):
        call["input_features"] = torch.linspace(-1, 1, 2 * 8 * 40).view(2, 8, 40)
    else:
        call["input_ids"] = ids
    if model.config.is_encoder_decoder:
        call["decoder_input_ids"] = ids.flip(1)
    return model(**call).logits


def fields(config: Any, path: str = "") -> dict[str, bool]:
    """Every ``tie_word_embeddings`` of a config, live or as it lies in a file, by its place."""
    inner = config if isinstance(config, dict) else config.to_dict()
    found = {path or "top": inner["tie_word_embeddings"]} if "tie_word_embeddings" in inner else {}
    for key, value in inner.items():
        if isinstance(value, dict):
            found |= fields(value, f"{path}.{key}".strip("."))
    return found
