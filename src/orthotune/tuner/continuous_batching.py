"""transformers' continuous batching with an adapter for each request, by ``adapter_names`` as in ``generate``.

It puts the tokens of all requests of a step behind each other in one row, ``(1, tokens)``, and hands the layers no
names. Which request has how many of them is known to its processor, so that while a step runs, every adapted layer gets
the tokens as rows, each under the adapter of its request. The head gets the tokens alone that are followed by a new
one.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import wraps
from inspect import signature
from types import ModuleType
from typing import Any

from torch import nn

from orthotune.errors import ConfigError
from orthotune.layers.mixed_batch import MixedBatch
from orthotune.layers.parametrization.one_call import one_call
from orthotune.tuner.mixed_batch import check_named, handed_down_by_token

_BATCHING = "transformers.generation.continuous_batching"
#: Attribute of a model whose requests are being answered
_REQUESTS = "_orthotune_requests"


@dataclass
class _Requests:
    """The adapters of the requests of one call, under the ids that they get."""

    names: dict[str, str]
    #: what the layers were handed in the last step: its rotations are side by side already
    batches: dict[tuple[str, ...], MixedBatch] = field(default_factory=dict)
    #: raised in the thread that generates, which answers errors with unfinished requests
    faults: list[Exception] = field(default_factory=list)

    def name(self, request: str) -> str:
        """The adapter of a request; further answers to one prompt have that of the first."""
        return self.names[request.split("__child#")[0]]

    def batch(self, names: Sequence[str]) -> MixedBatch:
        key = tuple(names)
        found = self.batches.get(key)
        return MixedBatch(key) if found is None else found


def replaced() -> list[tuple[type | ModuleType, str, Callable[[Any], Any]]]:
    """Class, name and replacement of each function that is replaced; none before transformers' module is imported."""
    owner: Any = getattr(sys.modules.get(_BATCHING), "ContinuousMixin", None)
    if owner is None:
        return []
    found: list[tuple[type | ModuleType, str, Callable[[Any], Any]]] = [(owner, "generate_batch", _by_request)]
    processor = _processor()
    return found if processor is None else [*found, (processor, "_generation_step", _by_token)]


def _processor() -> Any:
    """The class that runs a step, where it knows the requests in it; None in versions that keep them elsewhere."""
    owner = getattr(sys.modules.get(f"{_BATCHING}.continuous_api"), "ContinuousBatchProcessor", None)
    state = getattr(sys.modules.get(f"{_BATCHING}.requests"), "FutureRequestState", None)
    known = {"state", "has_new_token", "query_length"} <= set(getattr(state, "__slots__", ()))
    return owner if known and "_generation_step" in vars(owner) and _config_class() is not None else None


def _config_class() -> Any:
    return getattr(sys.modules.get("transformers.generation.configuration_utils"), "ContinuousBatchingConfig", None)


def _by_request(original: Callable[..., Any]) -> Callable[..., Any]:
    """``generate_batch``, which takes any keyword and reads few of them."""

    @wraps(original)
    def generate_batch(self: Any, *args: Any, **kwargs: Any) -> Any:
        names = kwargs.pop("adapter_names", None)
        if names is None:
            return original(self, *args, **kwargs)
        bound = signature(original).bind(self, *args, **kwargs)
        given = bound.arguments
        _check(self, MixedBatch(names), len(given["inputs"]), bool(given.get("persistent_manager")))
        config = copy.copy(given.get("continuous_batching_config") or _config_class()())
        # The cache shares the blocks of equal beginnings of prompts, whose keys and values are other ones under
        # another adapter; and the graphs of a GPU replay the adapters of the step that was recorded.
        config.allow_block_sharing = False
        if config.use_cuda_graph is None:
            config.use_cuda_graph = False
        given["continuous_batching_config"] = config
        requests = _Requests({f"req_{number}": name for number, name in enumerate(names)})
        setattr(self, _REQUESTS, requests)
        try:
            found = original(*bound.args, **bound.kwargs)
        finally:
            delattr(self, _REQUESTS)
        if requests.faults:
            raise requests.faults[0]
        return found

    return generate_batch


def _check(model: nn.Module, batch: MixedBatch, requests: int, persistent: bool) -> None:
    if _processor() is None:
        raise ConfigError(
            "adapter_names in generate_batch()", got="a transformers whose batches do not say whose tokens they hold",
            needed="a newer one, such as 5.19", do="Call generate(..., adapter_names=[...]), or upgrade transformers",
        )  # fmt: skip
    if len(batch.names) != requests:
        raise ConfigError(
            f"adapter_names in generate_batch(): {len(batch.names)} names",
            got=f"{requests} prompts", needed="one name for each prompt",
        )  # fmt: skip
    if persistent or getattr(model, "_cached_continuous_batching_manager", None) is not None:
        raise ConfigError(
            "adapter_names in generate_batch()",
            got="a manager that is kept, whose cache shares what prompts have in common across adapters",
            needed="a manager for this call alone",
            do="Omit persistent_manager=True, or call destroy_cached_continuous_batching_manager() first",
        )
    check_named(model, batch, by_token=True)


def _by_token(original: Callable[..., None]) -> Callable[..., None]:
    """A step of the processor, in which the layers know the adapter of each token."""

    @wraps(original)
    def _generation_step(self: Any, model: Any) -> None:
        requests: _Requests | None = getattr(model, _REQUESTS, None)
        if requests is None:
            original(self, model)
            return
        try:
            if self.model_runner.pad_inputs:
                raise ConfigError(
                    "adapter_names in generate_batch()",
                    got="a step that is compiled or replayed as a graph, with the adapters of another one",
                    needed="steps that run as they are written",
                    do="Leave use_cuda_graph and the settings of compilation out of the config",
                )
            tokens, ends = _names(self, requests)
            batches = [requests.batch(tokens), requests.batch(ends)]
            requests.batches = {batch.names: batch for batch in batches}
            heads = batches[1] if self.model_runner.supports_logits_to_keep(model) else batches[0]
            with handed_down_by_token(model, batches[0], heads), one_call():
                original(self, model)
        except Exception as fault:
            requests.faults.append(fault)
            raise

    return _generation_step


def _names(processor: Any, requests: _Requests) -> tuple[list[str], list[str]]:
    """The adapter of each token of a step, and of each token that the head gets."""
    ios = processor.inputs_and_outputs
    if hasattr(ios, "io_pairs"):  # two, one is filled while the other one is read
        ios = ios.io_pairs[ios.current_pair].host_io
    tokens: list[str] = []
    ends: list[str] = []
    for future in ios.requests_in_batch:
        tokens += [requests.name(future.state.request_id)] * future.query_length
        if future.has_new_token:
            ends.append(tokens[-1])
    # Of requests whose prompt goes on in the next step, the head gets the first token of all in place of one.
    return tokens, ends + tokens[:1] * (len(ios.requests_in_batch) - len(ends))
