"""``orthotune evaluate energy``: the hyperspherical energy of each layer before and after finetuning."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from orthotune.cli.evaluation import run


def energy(*, tuned: Path, base: str | None, s: float, half_space: bool, out: Path | None, overwrite: bool) -> None:
    """Measure and write the energy of each linear layer, and of all together.

    Args:
        tuned: adapter, or the folder of a fully finetuned model.
        base: path or hub name of the base model; None for the one that the adapter records.
        s: exponent of the energy.
        half_space: treat a neuron and its negative as the same direction.
        out: output folder.
        overwrite: replace what is at ``out``.
    """
    from orthotune.files.run_adapter import adapter_in
    from orthotune.operations.base_model import load_base
    from orthotune.operations.other_methods import load_any
    from orthotune.text.weight_pairs import weight_pairs

    tuned = tuned if (tuned / "config.json").is_file() else adapter_in(tuned)
    full = (tuned / "config.json").is_file() and not (tuned / "adapter_config.json").is_file()
    before = base or (None if full else _recorded_base(tuned))
    if not before:
        raise typer.BadParameter("the adapter does not record its base: add --base")

    def pairs() -> Iterator[Any]:  # a generator: models are loaded only once the output folder is known to be free
        model = load_base(before, "float32").model
        if full:
            yield from weight_pairs(load_base(str(tuned), "float32").model, model)
        else:
            # Adapters of PEFT's other methods are measured as well, to compare: LoRA changes the energy.
            yield from weight_pairs(load_any(model, tuned))

    run("energy", out, overwrite, pairs(), inputs=(tuned, before), s=s, half_space=half_space)


def _recorded_base(adapter: Path) -> str | None:
    from orthotune.files.installed_worlds import current
    from orthotune.formats.registry import read_adapter
    from orthotune.operations.other_methods import other_method, recorded_base

    if other_method(adapter) is not None:
        recorded = recorded_base(adapter)
    else:
        recorded = read_adapter(adapter).config.get("base_model_name_or_path")
    return current(recorded) if recorded else None
