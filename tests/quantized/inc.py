"""Intel Neural Compressor, with its workspace in a temporary folder and not in the one where the tests are run."""

from __future__ import annotations

from tempfile import TemporaryDirectory

import pytest

common = pytest.importorskip("neural_compressor.common", exc_type=ImportError)
_workspace = TemporaryDirectory()  # removed when the process ends
common.set_workspace(_workspace.name)

quantization = pytest.importorskip("neural_compressor.torch.quantization")
FP8Config, RTNConfig = quantization.FP8Config, quantization.RTNConfig
convert, prepare = quantization.convert, quantization.prepare
