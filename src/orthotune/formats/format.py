"""The base class of formats. All lists and tables of formats are made from its subclasses."""

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
    """One format: how its files are detected and read, and, if it can be written, which layers it can hold.

    A format that is only read has no ``target``, a format that is only written has no ``producer``. To add a format,
    write the class and add it to ``FORMATS`` in :mod:`orthotune.formats.registry`. The command line lists the targets
    without importing torch: a module that defines a format imports torch and safetensors inside its methods only.

    Attributes:
        name: id of the format, as :func:`~orthotune.operations.identify.identify` returns it.
        producer: the tool and version that writes such files.
        prefixes: prefixes of module names in such files, see :mod:`orthotune.formats.names.prefixes`.
        target: id under which :func:`~orthotune.operations.convert.convert` writes the format.
        tool: the tool that loads a written file.
        lossless: kinds of layers, see :mod:`orthotune.formats.kinds`, that the format holds exactly.
        approximate: kinds that the format holds approximately, if the user permits.
        side: the side that the format rotates; None for both.
        conv_reversed: whether the tool rotates convolutions in the opposite direction to linear layers.
        folder: written as a folder with a PEFT config and dotted module names, instead of one file.
        shared: whether the format can hold a shared block.
        channels: whether the format records that a convolution's channels are rotated the same way at every point of
            its kernel; for other formats such blocks are repeated over the kernel.
        scale: whether each layer must have a scale of its rows; a layer without a scale gets ones.
        scale_dims: whether the scales of convolutions and of linear layers have different shapes.
        spellings: component of a pipeline -> prefix of the underscored module names in a written file; "" is a single
            model.
        transformers: prefix of the diffusers names of a transformer in a written file; ``original`` if the tool knows
            the names of the program that first released the model, under the prefix of a UNet.
        kept: prefixes of underscored names that the tool reads unchanged; such a name is not respelled.
        note: an assumption about the base under which the tool computes the same, for every conversion.
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
    channels: ClassVar[bool] = False
    scale: ClassVar[bool] = False
    scale_dims: ClassVar[bool] = False
    spellings: ClassVar[Mapping[str, str]] = {
        "": "lora_unet_", "unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_",
        "text_encoder_3": "lora_te3_",
    }  # fmt: skip
    transformers: ClassVar[str] = "original"
    kept: ClassVar[tuple[str, ...]] = ("lora_", "lycoris_")
    note: ClassVar[str] = ""

    def detect(self, file: AdapterFile, options: ReadOptions) -> bool:
        """Whether a file has this format, judged by the names and shapes of its tensors, its config and its header.

        Args:
            file: opened, its tensors not read yet.
            options: facts that the file does not record.
        """
        return False

    def read(self, file: AdapterFile, options: ReadOptions) -> AdapterState:
        """The adapter in a file for which :meth:`detect` is true.

        Args:
            file: opened, its tensors not read yet.
            options: facts that the file does not record.

        Raises:
            AdapterFileError: a tensor is missing, has a wrong shape, or belongs to another method.
        """
        raise NotImplementedError(f"files of the format {self.name} cannot be read")

    def can_hold(self, kind: str) -> tuple[Verdict, str]:
        """Whether a written file can hold a kind of layer, and the reason if it cannot hold it exactly.

        Args:
            kind: of the layer, from :func:`~orthotune.formats.kinds.kind_of`.

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
        """Write an adapter; :meth:`can_hold` must be lossless for all its layers.

        Args:
            state: as :func:`~orthotune.formats.convert.convert` returns it.
            out: a file, or a folder.
            names: layer of the state -> name in the written file, dotted for a folder and underscored otherwise.

        Raises:
            UnsupportedLayerError: the format cannot hold a layer or its block size.
            OutputError: the file cannot be written.
        """
        raise NotImplementedError(f"files of the format {self.name} cannot be written")
