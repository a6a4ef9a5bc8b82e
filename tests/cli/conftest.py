"""A small model on disk, an adapter for it, and a way to call verbs in this process."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result


@pytest.fixture
def call() -> Callable[..., Result]:
    """Runs ``orthotune`` with some words; stdout and stderr are kept apart."""
    from orthotune.cli.main import app

    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


def small_llama(hidden: int = 16) -> torch.nn.Module:
    """A Llama of two layers whose sizes differ on purpose."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40, hidden_size=hidden, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=32, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return LlamaForCausalLM(config)


@pytest.fixture(scope="session")
def _trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from orthotune import OFTConfig, get_peft_model

    home = tmp_path_factory.mktemp("trained")
    small_llama().save_pretrained(home / "base")
    model = small_llama()
    model.name_or_path = str(home / "base")
    tuned = get_peft_model(model, OFTConfig(oft_block_size=4, target_modules=["q_proj", "down_proj"]))
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.2)
    tuned.save_pretrained(home / "adapter")
    tokens = torch.arange(12).reshape(2, 6)
    torch.save((tokens, tuned.eval()(tokens).logits.detach()), home / "expected.pt")
    return home


@pytest.fixture
def trained(_trained: Path, tmp_path: Path) -> Path:
    """``base``, ``adapter`` and ``expected.pt`` (tokens and the tuned model's logits), free to be damaged."""
    return Path(shutil.copytree(_trained, tmp_path / "trained"))
