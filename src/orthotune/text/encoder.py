"""Sentence encoders of sentence-transformers: loaded, adapted in their transformer, saved with pooling, trained."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, set_peft_model_state_dict
from safetensors import SafetensorError
from torch import Tensor

from orthotune import get_peft_model
from orthotune.errors import RecipeError
from orthotune.files.safetensors_file import read_tensors
from orthotune.operations.headed_base import write_base_config
from orthotune.quantized.loading_options import loading_options
from orthotune.runs import processes
from orthotune.text.causal_model import no_model, without_dropout

#: Names of tensors of an adapter in a checkpoint.
ADAPTER_FILE = "adapter_model.safetensors"


def need_sentence_transformers() -> Any:
    """The package ``sentence_transformers``.

    Raises:
        RecipeError: it is not installed.
    """
    try:
        import sentence_transformers
    except ModuleNotFoundError as missing:
        if missing.name != "sentence_transformers":
            raise
        do = 'Run pip install "orthotune[embed]"'
        raise RecipeError("train embed", got="no sentence-transformers in this environment", do=do) from missing
    return sentence_transformers


def load_encoder(source: str, dtype: torch.dtype, max_length: int, quantization: str | None = None) -> Any:
    """A sentence encoder without dropout; of a model without pooling, the mean of its last states is the embedding.

    Args:
        source: path or hub name of a sentence encoder, or of any transformer.
        dtype: of the model.
        max_length: most tokens of a text; what is longer is cut.
        quantization: a word of ``quantized/loading_options.py``.

    Returns:
        a ``SentenceTransformer``.

    Raises:
        RecipeError: no such model, or its first module is no transformer.
    """
    options = loading_options(quantization, source, dtype, processes.count()) if quantization else {}
    package = need_sentence_transformers()
    try:
        encoder = package.SentenceTransformer(
            source,
            trust_remote_code=False,
            model_kwargs={"dtype": dtype, **options},
            local_files_only=Path(source).is_dir(),
        )
    except (OSError, ValueError, SafetensorError) as fault:
        raise no_model(source, fault) from fault
    if not hasattr(encoder[0], "auto_model"):
        got = f"an encoder that starts with a {type(encoder[0]).__name__}"
        raise RecipeError(f"model={source}", got=got, needed="a transformer first, as BERT or Llama")
    if encoder.tokenizer.pad_token is None:
        encoder.tokenizer.pad_token = encoder.tokenizer.eos_token
    known = encoder.max_seq_length or max_length
    encoder.max_seq_length = min(max_length, known)
    without_dropout(encoder)
    return encoder


def adapted_encoder(encoder: Any, adapter: Any) -> Any:
    """The encoder with an adapter on its transformer; its other modules are frozen.

    Args:
        encoder: as :func:`load_encoder` returns.
        adapter: config of the adapter; None leaves the encoder as it is.
    """
    if adapter is None:
        return encoder
    encoder.requires_grad_(False)
    # Sentence embeddings come from the last states: BERT's own pooler is computed, and nothing learns from it.
    unused = [name for name, _ in encoder[0].model.named_modules() if name.startswith("pooler.")]
    if adapter.target_modules == "all-linear" and not adapter.exclude_modules and unused:
        adapter.exclude_modules = unused
    return with_transformer(encoder, get_peft_model(encoder[0].model, adapter))


def with_transformer(encoder: Any, transformer: Any) -> Any:
    """The encoder with another transformer in the place of its own.

    Args:
        encoder: a ``SentenceTransformer``.
        transformer: a model of transformers, or one with an adapter.
    """
    encoder[0].model = transformer
    return encoder


def save_encoder(trainer: Any, folder: Path, state: dict[str, Tensor] | None) -> None:
    """Write an encoder as sentence-transformers reads it; of an adapted one, the adapter in the place of its weights.

    Args:
        trainer: of the finished run.
        folder: that is written to.
        state: must be None: encoders are not spread over processes.
    """
    write_encoder(trainer.model, folder)


def write_encoder(encoder: Any, folder: str | Path) -> None:
    """Write modules, pooling, tokenizer, and weights or adapter of an encoder.

    Args:
        encoder: a ``SentenceTransformer``.
        folder: that is written to.
    """
    encoder.save_pretrained(str(folder), create_model_card=False)
    if isinstance(encoder[0].model, PeftModel):
        write_base_config(encoder[0].model.get_base_model(), Path(folder))


@cache
def encoder_trainer() -> Any:
    """The trainer of sentence-transformers whose checkpoints hold an adapter where an adapter is trained.

    Returns:
        a class to call :func:`orthotune.text.trainer.run_trainer` with.

    Raises:
        RecipeError: sentence-transformers is not installed.
    """
    base: Any = need_sentence_transformers().SentenceTransformerTrainer

    class EncoderTrainer(base):
        """Saves without a model card, and puts the adapter of a checkpoint back."""

        def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
            write_encoder(self.model, output_dir or self.args.output_dir)

        def _load_from_checkpoint(self, checkpoint_path: str) -> None:
            transformer = self.model[0].model
            if not isinstance(transformer, PeftModel):
                super()._load_from_checkpoint(checkpoint_path)
            else:
                set_peft_model_state_dict(transformer, read_tensors(Path(checkpoint_path, ADAPTER_FILE)))

        def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
            """Without a card there is nothing to collect for it."""

    return EncoderTrainer
