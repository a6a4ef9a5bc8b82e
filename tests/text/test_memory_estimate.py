"""What is counted beforehand of a language model is what a real step keeps, on the built-in model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from orthotune.files.installed_worlds import TEXT_WORLD
from orthotune.recipes import dpo, grpo, kto, orpo, rloo, sft
from orthotune.recipes.settings import SFTSettings
from orthotune.recipes.text_job import adapter_config
from orthotune.text.memory_estimate import OPTIMIZER_BYTES, adapted, empty_model, measure_memory
from orthotune.text.trainer import RunTrainer

#: The tensors that a trainer makes beside the layers (masks, positions, labels), and rotations that are kept once for
#: all layers or once for each: at most 2.6 percent was seen.
BOUND = 0.05


class _Kept:
    """Bytes that autograd keeps of the first loss of a trainer, and the shape of the batch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bytes, self.shape, original = 0, (0, 0), RunTrainer.compute_loss
        self.trained: list[int] = []

        def compute_loss(trainer: Any, model: Any, inputs: Any, *more: Any, **named: Any) -> Any:
            if self.bytes:
                return original(trainer, model, inputs, *more, **named)
            self.shape = _shape(inputs)
            self.trained = [p.nbytes for p in model.parameters() if p.requires_grad]
            held = [*model.parameters(), *model.buffers(), *(v for v in inputs.values() if torch.is_tensor(v))]
            owned = {t.untyped_storage()._cdata for t in held}
            saved: dict[int, Any] = {}

            def keep(tensor: torch.Tensor) -> torch.Tensor:
                storage = tensor.untyped_storage()
                if storage._cdata not in owned:
                    saved[storage._cdata] = storage
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                loss = original(trainer, model, inputs, *more, **named)
            self.bytes = sum(storage.nbytes() for storage in saved.values())
            return loss

        monkeypatch.setattr(RunTrainer, "compute_loss", compute_loss)


def _shape(inputs: Any) -> tuple[int, int]:
    """Sequences of a batch and their length; of ORPO's, chosen and rejected answers, of GRPO's, prompts and answers."""
    if "chosen_input_ids" in inputs:
        rows, length = inputs["chosen_input_ids"].shape
        return 2 * rows, max(length, inputs["rejected_input_ids"].shape[1])
    if "completion_ids" in inputs:
        return len(inputs["prompt_ids"]), inputs["prompt_ids"].shape[1] + inputs["completion_ids"].shape[1]
    rows, length = inputs["input_ids"].shape
    return rows, length


def _settings(kind: Any, output: Path, **changed: Any) -> Any:
    usual = {"steps": 1, "batch_size": 3, "max_length": 96, "eval_tokens": 64, "sample_prompts": [], "output": output}
    return kind(**usual | changed)


@pytest.mark.parametrize(
    ("job", "kind", "changed"),
    [
        (sft, "SFTSettings", {}),
        (sft, "SFTSettings", {"gradient_checkpointing": True}),
        (sft, "SFTSettings", {"method": "lora"}),
        (sft, "SFTSettings", {"method": "full"}),
        (dpo, "DPOSettings", {}),
        (kto, "KTOSettings", {}),
        (orpo, "ORPOSettings", {}),
        (grpo, "GRPOSettings", {"batch_size": 8}),
        (rloo, "RLOOSettings", {"batch_size": 8}),
    ],
)
def test_activations_are_those_of_a_real_step(
    job: Any, kind: str, changed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = _settings(getattr(job, kind), tmp_path / "run", **changed)
    kept = _Kept(monkeypatch)
    job.run(settings, lambda _: None, bar=False)
    config = adapter_config(settings, empty_model(TEXT_WORLD, torch.float32), [], "CAUSAL_LM")
    found = measure_memory(
        adapted(empty_model(TEXT_WORLD, torch.float32), config), *kept.shape,
        checkpointing=settings.gradient_checkpointing, logits=1.5 * kept.shape[1] if job is orpo else 0,
    )  # fmt: skip
    assert found.activations == pytest.approx(kept.bytes, rel=BOUND)
    assert found.trained == found.gradients == sum(kept.trained) and found.optimizer == 2 * found.trained


@pytest.mark.parametrize(("job", "kind"), [(orpo, "ORPOSettings"), (grpo, "GRPOSettings"), (rloo, "RLOOSettings")])
def test_a_plan_counts_what_the_recipe_reads(job: Any, kind: str, tmp_path: Path) -> None:
    """Of pairs both answers, and the logits where the loss keeps them."""
    lines = job.plan(_settings(getattr(job, kind), tmp_path / "run", batch_size=8))
    rows = 16 if job is orpo else 8
    assert any(f"{rows} sequences of at most 96 tokens" in line for line in lines)
    assert any(line.startswith("memory ") and "(estimate)" in line for line in lines)
    assert not (tmp_path / "run").exists()


def test_the_weights_are_those_of_the_file(tmp_path: Path) -> None:
    from orthotune.text.causal_model import load_model

    real = load_model(TEXT_WORLD, torch.bfloat16)
    settings = _settings(SFTSettings, tmp_path / "run")
    model = adapted(
        empty_model(TEXT_WORLD, torch.bfloat16),
        adapter_config(settings, empty_model(TEXT_WORLD, torch.bfloat16), [], "CAUSAL_LM"),
    )
    found = measure_memory(model, 1, 8, optim="adamw_8bit")
    beside = sum(t.nbytes for t in real.buffers())
    assert found.frozen == sum(t.nbytes for t in real.parameters()) + beside
    assert found.optimizer * 4 == found.trained * OPTIMIZER_BYTES["adamw_8bit"]
    assert all(p.device.type == "meta" for p in model.parameters() if not p.requires_grad), "nothing was computed"


def test_a_plan_says_what_it_does_not_know(tmp_path: Path) -> None:
    lines = sft.plan(_settings(SFTSettings, tmp_path / "run"))
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == [
        "model", "trained", "rates", "steps", "memory", "cards"
    ]  # fmt: skip
    quantized = sft.plan(_settings(SFTSettings, tmp_path / "run", quantization="nf4"))
    assert quantized[-1].startswith("memory      unknown: how many bytes a quantized base has")
    assert not (tmp_path / "run").exists()
