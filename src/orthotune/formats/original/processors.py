"""``R`` in the attention processors of diffusers, with the further tensors of oft-db and oft-t2i."""

from __future__ import annotations

from orthotune.formats.adapter_file import AdapterFile, refuse_shape
from orthotune.formats.adapter_state import AdapterState, LayerState
from orthotune.formats.codecs.dense_blocks import refuse_foreign, skew_vector
from orthotune.formats.codecs.oft_blocks import unused_warning
from orthotune.formats.original.dense_r import flag, projected, stored_blocks
from orthotune.formats.read_options import ReadOptions
from orthotune.rotation.spec import RotationSpec

SUFFIXES = "R|cross_attention_dim|hidden_size|oft_eps|oft_is_coft"


def read_processors(file: AdapterFile, format: str, options: ReadOptions) -> AdapterState:
    """Read an adapter, ``W' = W C-((R - Rᵀ) / 2)ᵀ`` with separate or shared blocks, for the attention projections.

    oft-t2i records whether the run used COFT. oft-db does not, and is read as stored unless ``options`` say otherwise.

    Args:
        file: opened, its tensors not read yet.
        format: id of the format.
        options: facts that the file does not record.

    Raises:
        AdapterFileError: a tensor has a wrong shape.
    """
    found = {stem: names for stem, names in file.layers(SUFFIXES).items() if "R" in names}
    rest = refuse_foreign(file, found)
    layers, prefixes = {}, {}
    for stem, names in found.items():
        tensors = file.read(names.values())
        scalars = {key: flag(file, name, tensors[name]) for key, name in names.items() if key != "R"}
        shared = len(file.shapes[names["R"]]) == 2
        blocks = stored_blocks(file, names["R"], tensors[names["R"]])
        wide = scalars.get("cross_attention_dim", 0)
        if wide > 0 and wide != blocks.shape[0] * blocks.shape[1] and not (shared and wide % blocks.shape[1] == 0):
            refuse_shape(file.path, names["R"], file.shapes[names["R"]], f"blocks that fill {wide:g} features")
        coft = bool(scalars["oft_is_coft"]) if "oft_is_coft" in scalars else options.coft
        if coft:
            blocks = projected(file, blocks, shared, scalars.get("oft_eps", options.eps))
        name = module_of(stem)
        prefixes[name] = stem
        layers[name] = LayerState({"": skew_vector(blocks, 0.5)}, RotationSpec(shared=shared))
    return AdapterState(
        layers, {}, file.read(rest), file.path, format, prefixes=prefixes, metadata=file.metadata,
        warnings=unused_warning(rest),
    )  # fmt: skip


def module_of(stem: str) -> str:
    """The projection that the rotation of a processor belongs to.

    Example:
        >>> module_of("mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_out_oft")
        'mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0'
    """
    attention, _, name = stem.rpartition(".")
    name = name.removesuffix("_oft")
    return f"{attention.removesuffix('.processor')}.{'to_out.0' if name == 'to_out' else name}".lstrip(".")
