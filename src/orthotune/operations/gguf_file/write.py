"""Write a merged model as a GGUF file through the ``gguf`` library, with one tensor in memory at a time."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from orthotune.errors import MergeError, OutputError
from orthotune.files.atomic import atomic_write, write_text
from orthotune.operations.checkpoint.stream import DenseMerge
from orthotune.operations.gguf_file import architectures, vocabulary
from orthotune.operations.gguf_file.converter import command, convert, find_converter
from orthotune.operations.gguf_file.modelfile import modelfile, tokenizer_of

#: Types that weights are stored in.
KINDS = ("f16", "bf16", "q8_0")
#: Subfolder with the merged model, where the last step is left to the user.
MERGED = "merged"


@dataclass(frozen=True)
class WrittenGguf:
    """What was written into a folder.

    Attributes:
        file: name of the GGUF file.
        by: ``gguf`` for the library, or the path of llama.cpp's converter; "" if the file is not made yet.
        command: the command that makes the file; "" where it is made.
        reason: why the library did not write it; "" where it did.
    """

    file: str
    by: str
    command: str = ""
    reason: str = ""


def write_folder(
    merge: DenseMerge, folder: Path, out: Path, kind: str, converter: Path | None, advance: Callable[[int], None]
) -> WrittenGguf:
    """Write the GGUF file of a merge and a Modelfile for Ollama, or the merged folder and the command that remains.

    Args:
        merge: an adapter on a language model.
        folder: an existing folder, which will be called ``out``.
        out: its final name, for the command.
        kind: one of :data:`KINDS`.
        converter: of llama.cpp, where one is wanted; None for the library.
        advance: called with the bytes that were merged.

    Returns:
        What was written.

    Raises:
        MergeError: a weight does not fit into the type.
        OutputError: the folder cannot be written to, the converter fails, or the base is no language model.
    """
    base = merge.base.path
    reason, found = _way(merge, converter)
    name = f"{out.name}-{kind}.gguf"
    text = modelfile(name, tokenizer_of(base))
    write_text(folder / "Modelfile", text)
    if not reason:
        write_gguf(merge, folder / name, kind, advance)
        return WrittenGguf(name, "gguf")
    merged = folder / MERGED
    merged.mkdir(exist_ok=True)
    merge.write(merged, advance=advance)
    if found is None:
        return WrittenGguf(name, "", command(out / MERGED, out / name, kind), reason)
    convert(found, merged, folder / name, kind)
    shutil.rmtree(merged)
    return WrittenGguf(name, str(found), reason=reason)


def write_file(
    merge: DenseMerge, folder: Path, out: Path, kind: str, converter: Path | None, advance: Callable[[int], None]
) -> WrittenGguf:
    """Write the GGUF file of a merge alone.

    Args:
        merge: an adapter on a language model.
        folder: an existing folder, for the file and what is needed on the way.
        out: final name of the file.
        kind: one of :data:`KINDS`.
        converter: of llama.cpp, where one is wanted; None for the library.
        advance: called with the bytes that were merged.

    Returns:
        What was written.

    Raises:
        MergeError: a weight does not fit into the type.
        OutputError: neither the library nor a converter makes the file, or the base is no language model.
    """
    reason, found = _way(merge, converter)
    if not reason:
        write_gguf(merge, folder / out.name, kind, advance)
        return WrittenGguf(out.name, "gguf")
    if found is None:
        raise OutputError(
            f"OUT {out}", got=f"a model that the gguf library does not write: {reason}",
            needed="llama.cpp's converter, with --converter",
            do="Or name a folder: the merged model is written there, with the command that remains",
        )  # fmt: skip
    merged = folder / MERGED
    merged.mkdir(exist_ok=True)
    merge.write(merged, advance=advance)
    convert(found, merged, folder / out.name, kind)
    return WrittenGguf(out.name, str(found), reason=reason)


def _way(merge: DenseMerge, converter: Path | None) -> tuple[str | None, Path | None]:
    """Why the library does not write the file, and the converter that does; None for none."""
    base = merge.base.path
    if merge.base.single_file or any(part.component or not part.transformers for part in merge.base.parts):
        raise OutputError(f"--to gguf of {base}", got="an image model", needed="a folder of a language model")
    reason = "the converter was named" if converter is not None else not_direct(base)
    return reason, converter or (None if not reason else find_converter(None))


def not_direct(base: Path) -> str | None:
    """Why the library does not write a model; None if it does.

    Args:
        base: a folder of a transformers model.
    """
    from transformers import AutoConfig

    try:
        import gguf  # noqa: F401
    except ImportError:
        return "the package gguf is missing (pip install 'orthotune[gguf]')"
    config = AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    return architectures.not_direct(config) or vocabulary.not_direct(base)


def write_gguf(merge: DenseMerge, path: Path, kind: str, advance: Callable[[int], None] | None = None) -> None:
    """Write one GGUF file.

    Args:
        merge: an adapter on a model that :func:`not_direct` does not refuse.
        path: the file; it appears when it is complete.
        kind: of the weights. Norms and other vectors are float32; rows that blocks of 32 do not fill are float16.
        advance: called with the bytes of each tensor.

    Raises:
        MergeError: a weight does not fit into float16, or a tensor has no name in GGUF.
        OutputError: the file cannot be written.

    Source:
        GGUF version 3; names of tensors and keys are those of the ``gguf`` library.
    """
    import gguf
    from transformers import AutoConfig

    (plan,) = merge.plans
    config: Any = AutoConfig.from_pretrained(merge.base.path, local_files_only=True, trust_remote_code=False)
    entries = [entry for part in merge.base.parts for shard in part.checkpoint.shards for entry in shard.entries]
    entries = [entry for entry in entries if not entry.name.endswith("rotary_emb.inv_freq")]
    arch = architectures.ARCHITECTURES[config.architectures[0]].name
    names = gguf.get_tensor_name_map(
        next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == arch), config.num_hidden_layers
    )
    types = {entry.name: _type(gguf, kind, entry.shape) for entry in entries}
    with atomic_write(path) as partial:
        writer = gguf.GGUFWriter(partial, arch)
        try:
            writer.add_type("model")
            writer.add_name(merge.base.path.name)
            architecture = architectures.describe(writer, config)
            writer.add_file_type(getattr(gguf.LlamaFileType, f"MOSTLY_{kind.upper()}"))
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
            _add_vocabulary(gguf, writer, merge.base.path, config)
            for entry in entries:
                name = names.get_name(entry.name, try_suffixes=(".weight", ".bias"))
                if name is None:
                    raise MergeError(
                        f"tensor '{entry.name}' in a GGUF file", got=f"no name for it in the architecture {arch}",
                        do="Name llama.cpp's converter with --converter",
                    )  # fmt: skip
                shape = gguf.quant_shape_to_byte_shape(entry.shape, types[entry.name])
                dtype, size = _numpy(types[entry.name].name), math.prod(shape)
                if types[entry.name].name in ("F32", "F16"):
                    shape, size = entry.shape, math.prod(entry.shape) * dtype.itemsize
                writer.add_tensor_info(name, shape, dtype, size, types[entry.name])
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for entry in entries:
                tensor = plan.changed(entry)
                tensor = entry.read() if tensor is None else tensor
                stored = architecture.stored(entry.name, tensor, config)
                writer.write_tensor_data(_packed(gguf, entry.name, stored, types[entry.name]))
                if advance is not None:
                    advance(entry.size)
        finally:
            writer.close()


def _type(gguf: Any, kind: str, shape: tuple[int, ...]) -> Any:
    types = gguf.GGMLQuantizationType
    if len(shape) < 2:
        return types.F32
    if kind == "q8_0" and shape[-1] % 32:
        return types.F16
    return getattr(types, kind.upper())


def _numpy(name: str) -> Any:
    import numpy as np

    return np.dtype({"F32": np.float32, "F16": np.float16}.get(name, np.uint8))


def _packed(gguf: Any, name: str, tensor: Tensor, kind: Any) -> Any:
    numbers = tensor.float().contiguous()
    if kind.name == "F16" and float(numbers.abs().max()) > torch.finfo(torch.float16).max:
        raise MergeError(
            f"tensor '{name}' as float16", got=f"a number of size {float(numbers.abs().max()):.3g}",
            needed=f"at most {torch.finfo(torch.float16).max:.0f}", do="Write bf16: --gguf-type bf16",
        )  # fmt: skip
    return gguf.quants.quantize(numbers.numpy(), kind)


def _add_vocabulary(gguf: Any, writer: Any, folder: Path, config: Any) -> None:
    found = vocabulary.read_vocabulary(folder, config.vocab_size)
    writer.add_tokenizer_model(found.model)
    writer.add_tokenizer_pre(found.pre)
    writer.add_token_list(found.tokens)
    if found.scores:
        writer.add_token_scores(found.scores)
        writer.add_add_space_prefix(found.space_prefix)
    writer.add_token_types(found.types)
    # special tokens, merges and the chat template, from tokenizer_config.json and beside it
    special = gguf.SpecialVocab(folder, load_merges=not found.scores, n_vocab=len(found.tokens))
    for name in ("bos", "eos"):
        special.add_special_token.setdefault(name, False)  # readers have defaults of their own where a key is missing
    special.add_to_gguf(writer, quiet=True)
