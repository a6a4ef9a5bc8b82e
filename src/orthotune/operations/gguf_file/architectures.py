"""Which models are written through the ``gguf`` library, and what its readers must know of each of them.

Every other model is left to llama.cpp's own converter: a file that is read as another model than the one that was
trained would answer wrongly without an error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Architecture:
    """How one family of models is stored.

    Attributes:
        name: of the architecture in a GGUF file.
        activation: of the feed-forward layers, which readers take for granted.
        interleaved: rows of query and key weights are stored in the order that llama.cpp rotates positions in.
        shifted_norms: weights of norms are stored with 1 added.
        refuse: why a config is not what readers assume, or None.
        describe: adds the keys that other families lack; the writer and the config.
    """

    name: str
    activation: str = "silu"
    interleaved: bool = False
    shifted_norms: bool = False
    refuse: Callable[[Any], str | None] = lambda config: None
    describe: Callable[[Any, Any], None] = lambda writer, config: None

    def stored(self, name: str, tensor: Tensor, config: Any) -> Tensor:
        """A tensor of the model as the file has it.

        Args:
            name: in the model's files.
            tensor: any float dtype.
            config: of the model.
        """
        if self.interleaved and name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config.num_attention_heads if ".q_proj" in name else config.num_key_value_heads
            # transformers rotates the first half of a head with the second, llama.cpp neighbouring rows
            return tensor.view(heads, 2, tensor.shape[0] // heads // 2, -1).transpose(1, 2).reshape(tensor.shape)
        if self.shifted_norms and name.endswith("norm.weight"):
            return tensor.float() + 1
        return tensor


def _llama(writer: Any, config: Any) -> None:
    writer.add_rope_dimension_count(head_size(config))


def _no_window(config: Any) -> str | None:
    window = getattr(config, "sliding_window", None)
    if window and getattr(config, "use_sliding_window", True):
        return f"a sliding window of {window} tokens, which this architecture of GGUF does not have"
    return None


def _no_biases(config: Any) -> str | None:
    found = [name for name in ("attention_bias", "mlp_bias") if getattr(config, name, False)]
    return f"{found[0]}=True" if found else _no_window(config)


def _gemma(config: Any, period: int) -> str | None:
    if config.query_pre_attn_scalar != config.head_dim:
        return f"query_pre_attn_scalar={config.query_pre_attn_scalar} with head_dim={config.head_dim}"
    wanted = [
        "full_attention" if not (n + 1) % period else "sliding_attention" for n in range(config.num_hidden_layers)
    ]
    return None if list(config.layer_types) == wanted else "layers with attention of another order than its family's"


def _gemma2(writer: Any, config: Any) -> None:
    writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    writer.add_final_logit_softcapping(config.final_logit_softcapping)
    writer.add_sliding_window(config.sliding_window)


def _refuse_gemma2(config: Any) -> str | None:
    if config.attn_logit_softcapping is None or config.final_logit_softcapping is None:
        return "no softcapping of logits"
    if not config.tie_word_embeddings:
        return "an output layer beside the embedding"
    return _gemma(config, 2)


def _gemma3(writer: Any, config: Any) -> None:
    writer.add_sliding_window(config.sliding_window)


def _refuse_gemma3(config: Any) -> str | None:
    local = _rope(config, "sliding_attention").get("rope_theta")
    if local != 10000.0:
        return f"rope_theta={local} in layers with a sliding window"
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if getattr(config, name, None) is not None:
            return f"{name}={getattr(config, name)}"
    return _gemma(config, 6)


#: Class of the model -> how it is stored.
ARCHITECTURES: dict[str, Architecture] = {
    "LlamaForCausalLM": Architecture("llama", interleaved=True, refuse=_no_biases, describe=_llama),
    "MistralForCausalLM": Architecture("llama", interleaved=True, refuse=_no_biases, describe=_llama),
    "Qwen2ForCausalLM": Architecture("qwen2", refuse=_no_window),
    "Qwen3ForCausalLM": Architecture("qwen3", refuse=_no_biases),
    "Gemma2ForCausalLM": Architecture(
        "gemma2", "gelu_pytorch_tanh", shifted_norms=True, refuse=_refuse_gemma2, describe=_gemma2
    ),
    "Gemma3ForCausalLM": Architecture(
        "gemma3", "gelu_pytorch_tanh", shifted_norms=True, refuse=_refuse_gemma3, describe=_gemma3
    ),
}


def head_size(config: Any) -> int:
    """Width of an attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _rope(config: Any, layers: str = "full_attention") -> dict[str, Any]:
    found = getattr(config, "rope_parameters", None) or {}
    return dict(found.get(layers) or found)


def not_direct(config: Any) -> str | None:
    """Why a model is not written through the library; None if it is.

    Args:
        config: of a transformers model.

    Example:
        >>> from transformers import GPT2Config
        >>> not_direct(GPT2Config(architectures=["GPT2LMHeadModel"]))
        'GPT2LMHeadModel'
    """
    kind = next(iter(getattr(config, "architectures", None) or []), type(config).__name__)
    architecture = ARCHITECTURES.get(kind)
    if architecture is None:
        return str(kind)
    activation = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None)
    if activation != architecture.activation:
        return f"{kind} with the activation {activation}"
    rope = _rope(config)
    if rope.get("rope_type", "default") != "default" or "rope_theta" not in rope:
        return f"{kind} with rope_type={rope.get('rope_type')}"
    reason = architecture.refuse(config)
    return None if reason is None else f"{kind} with {reason}"


def describe(writer: Any, config: Any) -> Architecture:
    """Write the keys about a model's shape.

    Args:
        writer: a ``gguf.GGUFWriter`` of the architecture's name.
        config: one that :func:`not_direct` does not refuse.

    Returns:
        The architecture.
    """
    architecture = ARCHITECTURES[config.architectures[0]]
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_size(config))
    writer.add_value_length(head_size(config))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(_rope(config)["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    architecture.describe(writer, config)
    return architecture
