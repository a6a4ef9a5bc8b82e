"""What is collected: docstrings of every module, but for those whose library is not on this machine."""

from __future__ import annotations

from importlib.util import find_spec

# Triton is optional. Any other module that cannot be imported is an error, not a skipped test.
collect_ignore = (
    [] if find_spec("triton") else [f"src/orthotune/kernels/triton_{name}.py" for name in ("cayley", "rotate")]
)
