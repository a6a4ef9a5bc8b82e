"""Fit magnitudes, a scale per neuron, with a trained and frozen rotation: re-scaled OFT, for language and image models.

A fit uses the settings of the run that trained the adapter, so that it minimizes the same loss on the same data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, create_model

from orthotune.errors import RecipeError
from orthotune.files.json_file import read_json
from orthotune.formats.adapter_file import CONFIG_NAME
from orthotune.recipes import load
from orthotune.recipes.magnitude_kinds import fit
from orthotune.recipes.method_settings import MethodSettings
from orthotune.recipes.registry import RECIPES
from orthotune.runs.record import RunRecord

Say = Callable[[str], None]
#: Chosen on the text world, where the rotation was trained with 1e-3: this rate forgets almost nothing, 1e-2 gains 1.5
#: times as much and forgets eight times as much, 3e-2 is worse in both.
LEARNING_RATE = 3e-3
#: Settings that are not taken from the earlier run: those of its rotation, which is frozen, and of its schedule.
NOT_TAKEN = {
    "method", "transform", "variant", "factors", "block_size", "r", "eps", "rotation", "magnitude_rate",
    "target_modules", "train_text_encoder",
    "lora_rank", "lora_alpha", "lora",
    "preset", "output", "resume", "learning_rate", "steps", "epochs", "eval_every", "save_every", "stop_when", "result",
    "rewind",
}  # fmt: skip


def load_magnitude(recipe: Path | None, overrides: Sequence[str]) -> MethodSettings:
    """The settings of a fit: ``adapter=FOLDER``, the settings of the run that trained it, and overrides.

    ``FOLDER`` is the output of a run with OFT or COFT, or a single adapter of any readable format, for which
    ``recipe=NAME`` and the settings of the recipe must be given. By default a fit has half as many steps as the run,
    and its output is next to that of the run.

    Args:
        recipe: a YAML file; None for none.
        overrides: such as ``"steps=50"``.

    Raises:
        RecipeError: there is no adapter, the run has no rotation, the recipe does not exist, and as for any run.

    Example:
        >>> load_magnitude(None, ["adapter=runs/subject-oft", "steps=50"]).steps  # doctest: +SKIP
        50
    """
    given = load.read(recipe, overrides)
    if not given.values.get("adapter"):
        raise RecipeError("adapter is missing", needed="the folder of an OFT run or adapter", do="Write adapter=FOLDER")
    source = Path(str(given.values["adapter"]))
    folder, run = _adapter_and_run(source, given.place("adapter"))
    record = read_json(run / "run.json") if run else {}
    name = given.values.pop("recipe", None) or record.get("recipe")
    if name not in RECIPES:
        raise RecipeError(
            f"recipe={name}" if name else f"{given.place('adapter')}: adapter={source} is not in a run directory",
            needed=f"recipe, one of {', '.join(RECIPES)}, and its settings",
            do=None if name else "Add for instance recipe=subject",
        )
    if record and record["method"] not in ("oft", "coft"):
        raise RecipeError(
            f"{given.place('adapter')}: adapter={source}", got=f"a run with method={record['method']}",
            needed="a run that trained a rotation",
        )  # fmt: skip
    kind = settings_kind(name)
    before = {key: value for key, value in record.get("settings", {}).items() if key not in NOT_TAKEN}
    # The rotation settings would add a new rotation. Here the rotation exists, and magnitudes use the rate itself.
    before["rotation"] = {}
    values = {"learning_rate": LEARNING_RATE, **before, **given.values, "adapter": folder}
    values.setdefault("output", run.with_name(f"{run.name}-magnitude") if run else Path("runs") / "magnitude")
    if record and not {"steps", "epochs"} & given.values.keys():
        values["steps"] = max(1, record["steps"] // 2)
    if name == "subject" and run and (run / "class-images").is_dir():
        values.setdefault("class_images", run / "class-images")  # the same images would be generated again
    return load.check(kind, load.Given(values, given.places))


def settings_kind(name: str) -> type[MethodSettings]:
    """The settings class of the recipe ``name`` with the additional setting ``adapter``."""
    about = "Folder of an adapter with rotations."
    kind: type[MethodSettings] = create_model(
        "MagnitudeSettings", __base__=RECIPES[name].settings_class(), adapter=(Path, Field(description=about))
    )
    return kind


def run(settings: Any, say: Say = print, bar: bool = True) -> RunRecord:
    """Fit the magnitudes and return the record of the run.

    The output is that of the recipe; its ``adapter`` contains the unchanged rotation and the magnitudes.

    Args:
        settings: from :func:`load_magnitude`.
        say: gets messages.
        bar: show a progress bar.

    Raises:
        OutputError, DataError, RecipeError: as for a run of the recipe.
        AdapterFileError: the adapter is damaged, or does not belong to the model.
        ConfigError: the adapter contains maps that are not rotations.
    """
    return fit(settings, say, bar)


def _adapter_and_run(source: Path, place: str) -> tuple[Path, Path | None]:
    """The folder (or file) of the adapter, and the run directory that contains it, if any."""
    inside = source / "adapter"
    folder = inside if inside.is_dir() else source
    if not folder.exists() or (folder.is_dir() and not any(folder.glob("*.safetensors"))):
        raise RecipeError(
            f"{place}: adapter={source}", got="no adapter there" if source.exists() else "no such folder",
            needed=f"the output of an OFT run, or a folder with {CONFIG_NAME}",
        )  # fmt: skip
    return folder, folder.parent if (folder.parent / "run.json").is_file() else None
