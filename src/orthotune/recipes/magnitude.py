"""Fit the scale of each neuron beside a trained rotation that stands still: re-scaled OFT, of language or image models.

A run takes the settings of the run that made the adapter, so that the same loss is lowered on the same data.
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
#: On the text world, where the rotation was trained with 1e-3: this forgets next to nothing, 1e-2 learns half as much
#: again and forgets eight times as much, 3e-2 is worse in both.
LEARNING_RATE = 3e-3
#: What belongs to the run before: its rotation, which stands, and its course.
OF_THAT_RUN = {
    "method", "block_size", "r", "eps", "rotation", "magnitude_rate", "target_modules", "train_text_encoder",
    "lora_rank", "lora_alpha", "lora",
    "preset", "output", "resume", "learning_rate", "steps", "epochs", "eval_every", "save_every", "stop_when", "result",
    "rewind",
}  # fmt: skip


def load_magnitude(recipe: Path | None, overrides: Sequence[str]) -> MethodSettings:
    """The settings of a fit: ``adapter=FOLDER``, then those of the run that made it, then what was said now.

    ``FOLDER`` is the output of a run by OFT or COFT, or an adapter alone, of any format that can be read; then
    ``recipe=NAME`` and the recipe's own settings have to be given. Unless said, a fit takes half as many steps as that
    run, and writes beside it.

    Raises:
        RecipeError: no adapter there, a run without a rotation, a recipe that does not exist, and as for any run.

    Example:
        >>> load_magnitude(None, ["adapter=runs/subject-oft", "steps=50"]).steps  # doctest: +SKIP
        50
    """
    said = load.read(recipe, overrides)
    if not said.values.get("adapter"):
        raise RecipeError("adapter is missing", needed="the folder of an OFT run or adapter", do="Write adapter=FOLDER")
    given = Path(str(said.values["adapter"]))
    folder, run = _found(given, said.place("adapter"))
    record = read_json(run / "run.json") if run else {}
    name = said.values.pop("recipe", None) or record.get("recipe")
    if name not in RECIPES:
        raise RecipeError(
            f"recipe={name}" if name else f"{said.place('adapter')}: adapter={given} is in no run's folder",
            needed=f"recipe, one of {', '.join(RECIPES)}, and its settings",
            do=None if name else "Add for instance recipe=subject",
        )
    if record and record["method"] not in ("oft", "coft"):
        raise RecipeError(
            f"{said.place('adapter')}: adapter={given}", got=f"a run with method={record['method']}",
            needed="a rotation, whose neurons are to be scaled",
        )  # fmt: skip
    kind = settings_kind(name)
    before = {key: value for key, value in record.get("settings", {}).items() if key not in OF_THAT_RUN}
    # A preset's rotation would be put on anew: here one stands, and its magnitudes learn at the rate itself.
    before["rotation"] = {}
    values = {"learning_rate": LEARNING_RATE, **before, **said.values, "adapter": folder}
    values.setdefault("output", run.with_name(f"{run.name}-magnitude") if run else Path("runs") / "magnitude")
    if record and not {"steps", "epochs"} & said.values.keys():
        values["steps"] = max(1, record["steps"] // 2)
    if name == "subject" and run and (run / "class-images").is_dir():
        values.setdefault("class_images", run / "class-images")  # they would be drawn just the same again
    return load.check(kind, load.Said(values, said.places))


def settings_kind(name: str) -> type[MethodSettings]:
    """The settings of the recipe ``name``, and the adapter whose neurons are scaled."""
    about = "Folder of an adapter that turns."
    kind: type[MethodSettings] = create_model(
        "MagnitudeSettings", __base__=RECIPES[name].settings_class(), adapter=(Path, Field(description=about))
    )
    return kind


def run(settings: Any, say: Say = print, bar: bool = True) -> RunRecord:
    """Fit the magnitudes as ``settings`` (of :func:`load_magnitude`) say; return the record of the run.

    The output is that of the recipe; its ``adapter`` holds the rotation, as it was, and the magnitude.

    Raises:
        OutputError, DataError, RecipeError: as for a run of the recipe.
        AdapterFileError: the adapter is damaged, or does not belong to the model.
        ConfigError: it holds maps that are no rotations.
    """
    return fit(settings, say, bar)


def _found(given: Path, place: str) -> tuple[Path, Path | None]:
    """The adapter's folder (or file), and the folder of the finished run that it lies in."""
    inside = given / "adapter"
    folder = inside if inside.is_dir() else given
    if not folder.exists() or (folder.is_dir() and not any(folder.glob("*.safetensors"))):
        raise RecipeError(
            f"{place}: adapter={given}", got="no adapter there" if given.exists() else "no such folder",
            needed=f"the output of an OFT run, or a folder with {CONFIG_NAME}",
        )  # fmt: skip
    return folder, folder.parent if (folder.parent / "run.json").is_file() else None
