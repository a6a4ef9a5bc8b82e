"""vLLM's classes by their recorded signatures: what the plug-in wraps and overrides, where the engine is not installed.

``tests/vllm/test_interface.py`` compares the record with the engine; ``python -m tests.support.recorded_engine`` in the
environment of ``make test-vllm`` writes it anew.
"""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from orthotune.files.json_file import read_json, write_text

RECORD = Path(__file__).parents[1] / "fixtures" / "vllm-0.32" / "interface.json"
#: Module -> class -> the methods that the plug-in overrides, wraps or calls.
CLASSES: dict[str, dict[str, tuple[str, ...]]] = {
    "vllm.lora.layers.base_linear": {
        "BaseLinearLayerWithLoRA": (
            "_apply_sync", "_apply_base_forward", "_apply_lora_to_output", "_get_quant_method",
        ),
    },
    "vllm.lora.layers.logits_processor": {"LogitsProcessorWithLoRA": ("_get_logits",)},
    "vllm.lora.layers.vocab_parallel_embedding": {"VocabParallelEmbeddingWithLoRA": ("forward",)},
    "vllm.lora.lora_model": {"LoRAModel": ("__init__",)},
    "vllm.lora.model_manager": {
        "LoRAModelManager": ("__init__", "activate_adapter", "_create_merged_loras_inplace"),
    },
    "vllm.lora.punica_wrapper.punica_base": {"PunicaWrapperBase": ("_update_base_metadata",)},
    "vllm.lora.worker_manager": {"WorkerLoRAManager": ("_load_adapter",)},
    "vllm.model_executor.layers.linear": {"UnquantizedLinearMethod": ("apply",)},
    "vllm.v1.worker.gpu.sample.prompt_logprob": {
        "PromptLogprobsWorker": ("compute_prompt_logprobs", "compute_prompt_token_id_logprobs"),
    },
    "vllm.v1.worker.gpu_model_runner": {"GPUModelRunner": ("_get_prompt_logprobs_dict",)},
}  # fmt: skip
UTILS, ENVIRONMENT = "vllm.lora.utils", ("VLLM_LORA_ENABLE_DUAL_STREAM",)


def described() -> dict[str, Any]:
    """The interface of the engine that is installed here."""
    import vllm

    utils, envs = importlib.import_module(UTILS), importlib.import_module("vllm.envs")
    classes = {
        module: {name: _described(getattr(importlib.import_module(module), name), methods)
                 for name, methods in known.items()}
        for module, known in CLASSES.items()
    }  # fmt: skip
    return {
        "version": ".".join(vllm.__version__.split(".")[:2]),
        "classes": classes,
        "adapted": {own.__name__: _bases(own) for own in sorted(utils._all_lora_classes, key=lambda own: own.__name__)},
        "get_adapter_absolute_path": _parameters(utils.get_adapter_absolute_path),
        "environment": {name: getattr(envs, name) for name in ENVIRONMENT},
    }


def _described(own: type, methods: tuple[str, ...]) -> dict[str, Any]:
    return {
        "module": issubclass(own, nn.Module),
        "methods": {name: _parameters(getattr(own, name)) for name in methods},
    }


def _bases(own: type) -> list[str]:
    """The recorded classes that a class is one of."""
    known = {name for names in CLASSES.values() for name in names}
    return [base.__name__ for base in own.__mro__ if base.__name__ in known]


def _parameters(function: Callable[..., Any]) -> list[list[Any]]:
    """Name, kind and whether there is a default, of each parameter."""
    found = inspect.signature(function).parameters.values()
    return [[one.name, one.kind.name, one.default is not inspect.Parameter.empty] for one in found]


def signature(parameters: list[list[Any]]) -> inspect.Signature:
    """A signature as it was recorded.

    Args:
        parameters: name, kind and whether there is a default, of each.
    """
    return inspect.Signature([
        inspect.Parameter(name, getattr(inspect.Parameter, kind),
                          default=None if default else inspect.Parameter.empty)
        for name, kind, default in parameters
    ])  # fmt: skip


def recorded() -> dict[str, Any]:
    """The record."""
    found: dict[str, Any] = read_json(RECORD)
    return found


def modules() -> dict[str, ModuleType]:
    """Modules with the recorded names, to stand in ``sys.modules``: a method takes what it takes in the engine."""
    record = recorded()
    made: dict[str, ModuleType] = {}

    def module(name: str) -> ModuleType:
        parent, _, own = name.rpartition(".")
        if name not in made:
            made[name] = ModuleType(name)
            made[name].__path__ = []  # type: ignore[attr-defined]
            if parent:
                setattr(module(parent), own, made[name])
        return made[name]

    kinds: dict[str, type] = {}
    for place, classes in record["classes"].items():
        for name, facts in classes.items():
            methods = {method: _standing_in(method, signature(own)) for method, own in facts["methods"].items()}
            bases = (nn.Module,) if facts["module"] else ()
            kinds[name] = type(name, bases, {**methods, "__module__": place})
            setattr(module(place), name, kinds[name])
    utils = module(UTILS)
    own_classes: list[type] = []
    for name, bases in record["adapted"].items():
        own_classes.append(kinds[name] if name in kinds else type(name, tuple(kinds[base] for base in bases), {}))
    utils.LogitsProcessorWithLoRA = kinds["LogitsProcessorWithLoRA"]  # type: ignore[attr-defined]
    utils._all_lora_classes = tuple(own_classes)  # type: ignore[attr-defined]
    utils.get_adapter_absolute_path = lambda path: path  # type: ignore[attr-defined]
    for name, value in record["environment"].items():
        setattr(module("vllm.envs"), name, value)
    module("vllm").__version__ = f"{record['version']}.0"  # type: ignore[attr-defined]
    return made


def _standing_in(name: str, own: inspect.Signature) -> Callable[..., Any]:
    def method(*args: Any, **kwargs: Any) -> None:
        own.bind(*args, **kwargs)  # as the engine would, an argument that it does not know is an error

    method.__name__, method.__signature__ = name, own  # type: ignore[attr-defined]
    return method


if __name__ == "__main__":
    write_text(RECORD, json.dumps(described(), indent=1) + "\n")
