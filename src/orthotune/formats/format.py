"""What a format of adapter files is: one class, from which every list and table of formats is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from orthotune.formats.kinds import REASONS, SCALE, SCALED, SERIES_REASON, SIDE, Verdict

if TYPE_CHECKING:
    from pathlib import Path

    from orthotune.formats.adapter_file import AdapterFile
    from orthotune.formats.adapter_state import AdapterState
    from orthotune.formats.names.prefixes import Prefix
    from orthotune.formats.read_options import ReadOptions


class Format:
    """One format: how its files are recognized and read, and, if they can be written, what they can hold.

    A format that is only read has no ``target``, one that is only written has no ``producer``. To add one, write the
    class and add it to ``FORMATS`` in :mod:`orthotune.formats.registry`. The command line lists the targets before
    anything heavy is imported: a module that defines a format imports torch and safetensors inside its methods alone.

    Attributes:
        name: id of the format, as :func:`~orthotune.operations.identify.identify` gives it.
        producer: who writes such files.
        prefixes: what stands before the name of a module in such files, see :mod:`orthotune.formats.names.prefixes`.
        target: id under which :func:`~orthotune.operations.convert.convert` writes the format.
        tool: who loads what is written.
        lossless: kinds of layers, see :mod:`orthotune.formats.kinds`, that the format holds as they are.
        approximate: kinds that the format holds nearly, on demand.
        side: on which side of the weight the format rotates; None for both.
        conv_reversed: whether the tool rotates convolutions the other way than linear layers.
        folder: written as a folder with PEFT's config and dotted names of modules, and not as one file.
        shared: whether one stored block can stand for all.
        scale: whether every layer has a scale of its rows; a layer without one gets ones.
        scale_dims: whether the shape of a scale tells convolutions from linear layers.
        spellings: component of a pipeline -> what stands before the underscored name of a module in a written file; ""
            is a model by itself.
        kept: prefixes of underscored names that the tool reads as they are; such a name stays what it is.
    """

    name: ClassVar[str]
    producer: ClassVar[str] = ""
    prefixes: ClassVar[tuple[Prefix, ...]] = ()
    target: ClassVar[str | None] = None
    tool: ClassVar[str] = ""
    lossless: ClassVar[frozenset[str]] = frozenset()
    approximate: ClassVar[frozenset[str]] = frozenset()
    side: ClassVar[Literal["in", "out"] | None] = "in"
    conv_reversed: ClassVar[bool] = False
    folder: ClassVar[bool] = False
    shared: ClassVar[bool] = False
    scale: ClassVar[bool] = False
    scale_dims: ClassVar[bool] = False
    spellings: ClassVar[Mapping[str, str]] = {
        "": "lora_unet_", "unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_",
    }  # fmt: skip
    kept: ClassVar[tuple[str, ...]] = ("lora_", "lycoris_")

    def detect(self, file: AdapterFile, options: ReadOptions) -> bool:
        """Whether a file has this format, by the names and shapes of its tensors, its config and its header.

        Args:
            file: opened, but no tensor of it is read.
            options: what the file does not say about itself.
        """
        return False

    def read(self, file: AdapterFile, options: ReadOptions) -> AdapterState:
        """The adapter in a file for which :meth:`detect` is true.

        Args:
            file: opened, but no tensor of it is read.
            options: what the file does not say about itself.

        Raises:
            AdapterFileError: a tensor is missing, has a wrong shape, or belongs to another method.
        """
        raise NotImplementedError(f"files of the format {self.name} cannot be read")

    def can_hold(self, kind: str) -> tuple[Verdict, str]:
        """Whether a written file can hold a kind of layer, and the reason if it cannot hold the layer as it is.

        Args:
            kind: as :func:`~orthotune.formats.kinds.kind_of` names it.

        Example:
            >>> from orthotune.formats.registry import targets
            >>> targets()["lycoris"].can_hold("in exact")[0], targets()["lycoris"].can_hold("out exact")
            ('impossible', ('lossless', ''))
        """
        if kind in self.lossless:
            return "lossless", ""
        if kind in self.approximate:
            return "approximate", SERIES_REASON
        if self.side and kind.startswith("out " if self.side == "in" else "in "):
            return "impossible", SIDE
        if kind in REASONS:
            return "impossible", REASONS[kind]
        return "impossible", SCALE if kind.endswith(SCALED) else SERIES_REASON

    def write(self, state: AdapterState, out: Path, names: Mapping[str, str]) -> Path:
        """Write an adapter of which :meth:`can_hold` is lossless for every layer.

        Args:
            state: as :func:`~orthotune.formats.convert.convert` returns it.
            out: a file, or a folder.
            names: layer of the state -> name in the written file, dotted for a folder and underscored otherwise.

        Raises:
            UnsupportedLayerError: the tool has no place for a layer or for its block size.
            OutputError: the file cannot be written.
        """
        raise NotImplementedError(f"files of the format {self.name} cannot be written")
