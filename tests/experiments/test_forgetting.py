from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from orthotune.errors import RecipeError
from orthotune.experiments.forgetting import effective_rank, parts_of
from orthotune.recipes import sft
from orthotune.recipes.settings import SFTSettings


def test_effective_rank_by_hand() -> None:
    torch.manual_seed(0)
    U, V = (torch.linalg.qr(torch.randn(n, 3))[0] for n in (5, 7))
    assert effective_rank(U[:, :1] @ V[:, :1].mT) == pytest.approx(1, abs=1e-6)
    # Energies 4/6, 1/6, 1/6: exp(-(2/3 ln 2/3 + 1/3 ln 1/6)).
    assert effective_rank(U @ torch.diag(torch.tensor([2.0, 1.0, 1.0])) @ V.mT) == pytest.approx(2.3811, abs=1e-4)
    assert effective_rank(torch.zeros(3, 2)) == pytest.approx(1)


@pytest.mark.parametrize("method", ["oft", "lora"])
def test_parts_are_switched_off_one_by_one(
    method: Any, model_path: Path, text_path: Path, old_path: Path, tmp_path: Path
) -> None:
    settings = SFTSettings(
        method=method, model=str(model_path), data=str(text_path), old_data=str(old_path), block_size=16, steps=3,
        batch_size=2, max_length=32, learning_rate=2e-2, output=tmp_path / "run",
        target_modules=["q_proj", "down_proj"],
    )  # fmt: skip
    record = sft.run(settings, say=lambda _: None)
    whole, *parts = parts_of(settings.output, say=lambda _: None)
    # The run's own figures, measured again on the adapter that was saved.
    assert whole.gain == pytest.approx(record.gain, abs=1e-5)
    assert whole.forgetting == pytest.approx(record.forgetting, abs=1e-5)
    assert whole.drift == pytest.approx(record.drift, abs=1e-5)
    names = [part.name for part in parts]
    assert {"q_proj", "down_proj"} < set(names) and all(
        name.startswith("layer ") for name in names if not name.endswith("_proj")
    )
    for part in parts:
        assert part.gain == pytest.approx(whole.gain - part.gain_lost, abs=1e-9)
        assert part.forgetting == pytest.approx(whole.forgetting - part.forgetting_saved, abs=1e-9)
        assert part.change > 0 and part.drift >= 0 and part.effective_rank >= 1
    # Of two parts that are the whole, what is lost without one is what the other alone has not.
    queries, down = (part for part in parts if part.name.endswith("_proj"))
    assert queries.change > 0 and down.change > 0 and (queries.drift, down.drift) != (0, 0)


def test_a_folder_without_a_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no finished run of `orthotune train sft`"):
        parts_of(tmp_path)
