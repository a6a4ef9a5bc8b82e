"""Python code that loads the adapter or model of a run."""

from __future__ import annotations

from orthotune.files.installed_worlds import SMOLLM2
from orthotune.report.records import Records

#: Names in the settings that stand for the built-in models.
TEXT_WORLD, IMAGE_WORLD = "text-world", "image-world"


def loading(records: Records) -> str | None:
    """The code to show on the page; None for a comparison."""
    if not records.run:
        return None
    artifacts = records.run.get("artifacts") or {}
    model = str((records.run.get("settings") or {}).get("model") or "path/to/the/base/model")
    if records.run.get("recipe") in (None, "sft"):
        return _language(records, artifacts, model)
    return _image(records, artifacts, model)


def _language(records: Records, artifacts: dict[str, str], model: str) -> str:
    if "adapter" not in artifacts:
        trained = records.folder / (artifacts.get("model") or "model")
        return (
            "from transformers import AutoModelForCausalLM\n\n"
            f"model = AutoModelForCausalLM.from_pretrained({trained.as_posix()!r})\n"
        )
    fetched = model == SMOLLM2
    opened = f"model_folder({model!r})" if fetched else "text.MODEL" if model == TEXT_WORLD else repr(model)
    adapter, built_in = (records.folder / artifacts["adapter"]).as_posix(), model == TEXT_WORLD
    return (
        "from orthotune import PeftModel\n"
        + ("from orthotune.worlds import text\n" if built_in else "")
        + ("from orthotune.files.installed_worlds import model_folder\n" if fetched else "")
        + "from transformers import AutoModelForCausalLM\n\n"
        + f"model = AutoModelForCausalLM.from_pretrained({opened})\n"
        + f"model = PeftModel.from_pretrained(model, {adapter!r})\n"
        + "model = model.merge_and_unload()  # optional: an ordinary model again\n"
    )


def _image(records: Records, artifacts: dict[str, str], model: str) -> str:
    built_in = model == IMAGE_WORLD
    if "adapter" not in artifacts:
        trained = (records.folder / (artifacts.get("model") or "model")).as_posix()
        return (
            "import torch\nfrom diffusers import DiffusionPipeline\n\n"
            f"pipeline = DiffusionPipeline.from_pretrained({trained!r}, torch_dtype=torch.float32)\n"
        )
    adapter = (records.folder / artifacts["adapter"]).as_posix()
    if records.run.get("recipe") == "control":
        return _control(adapter, model)
    opened = (
        "from orthotune.worlds import image\n\npipeline = image.load_pipeline()\n"
        if built_in
        else f"from diffusers import DiffusionPipeline\n\npipeline = DiffusionPipeline.from_pretrained({model!r})\n"
    )
    if records.run.get("method") == "lora":
        return opened + f"pipeline.load_lora_weights({adapter!r})\n"
    return "from orthotune import load_adapter\n" + opened + f"pipeline, report = load_adapter(pipeline, {adapter!r})\n"


def _control(adapter: str, model: str) -> str:
    built_in = model == IMAGE_WORLD
    base = "image.PIPELINE" if built_in else repr(model)
    return (
        "from orthotune.image.control.pipeline import ControlPipeline\n"
        + ("from orthotune.worlds import image\n" if built_in else "")
        + f"\npipeline = ControlPipeline.from_pretrained({base}, {adapter!r})\n"
        + 'image_of_prompt = pipeline("a prompt", "control-image.png", seed=0).images[0]\n'
    )
