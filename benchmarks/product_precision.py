"""What a rotation loses when tensor cores make its float32 products: the kernels' arithmetic, emulated on a processor.

    python benchmarks/product_precision.py

A tensor core multiplies numbers of few bits and sums in float32. A float32 number can be cut into two or three such
parts, whose products are summed: ``tf32x3``, ``bf16x3`` and ``bf16x6``, as Triton names them. Each part is rounded here
as the hardware rounds it, its products are exact in float32, and sums are float32's; only their order is another one.
Errors are against float64. The kernels take ``ieee``, full float32 products without tensor cores.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from orthotune.files.tables import write_table
from orthotune.rotation.packing import unpack

Dot = Callable[[Tensor, Tensor], Tensor]


def tf32(x: Tensor) -> Tensor:
    """Ten bits of mantissa, to the nearest, ties away from zero.

    Example:
        >>> tf32(torch.tensor([1.0 + 2**-11, 1.0 + 2**-12])).tolist()
        [1.0009765625, 1.0]
    """
    return ((x.float().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def bf16(x: Tensor) -> Tensor:
    """Seven bits of mantissa, to the nearest.

    Example:
        >>> bf16(torch.tensor([1.0 + 2**-7, 1.0 + 2**-9])).tolist()
        [1.0078125, 1.0]
    """
    return x.bfloat16().float()


def parted(rounded: Callable[[Tensor], Tensor], parts: int, x: Tensor) -> list[Tensor]:
    """``x`` as a sum of numbers of few bits, the largest first.

    Example:
        >>> sum(parted(bf16, 3, torch.tensor([0.1]))).item() == torch.tensor(0.1).item()
        True
    """
    found: list[Tensor] = []
    for _ in range(parts):
        found.append(rounded(x))
        x = x - found[-1]
    return found


def of_parts(rounded: Callable[[Tensor], Tensor], parts: int) -> Dot:
    """A product of numbers in parts: those pairs that are not below the last part, the smallest first."""

    def dot(a: Tensor, b: Tensor) -> Tensor:
        left, right = parted(rounded, parts, a), parted(rounded, parts, b)
        pairs = sorted(((i, j) for i in range(parts) for j in range(parts - i)), key=sum, reverse=True)
        total = left[pairs[0][0]] @ right[pairs[0][1]]
        for i, j in pairs[1:]:
            total = total + left[i] @ right[j]
        return total

    return dot


PRECISIONS: dict[str, Dot] = {
    "ieee": torch.matmul,
    "tf32": of_parts(tf32, 1),
    "tf32x3": of_parts(tf32, 2),
    "bf16x3": of_parts(bf16, 2),
    "bf16x6": of_parts(bf16, 3),
}


def cayley_as_the_kernel(Q: Tensor, dot: Dot) -> Tensor:
    """``kernels/triton_cayley.py``'s forward, with its products made by ``dot``.

    Shapes: ``(rows, b, b)`` skew float32 -> the same, rotations.

    Example:
        >>> cayley_as_the_kernel(torch.zeros(1, 2, 2), torch.matmul)[0]
        tensor([[1., 0.],
                [0., 1.]])
    """
    eye = torch.eye(Q.shape[-1], dtype=Q.dtype)
    S = -dot(Q, Q)
    s = (S.square().sum((-2, -1), keepdim=True) * 0.5).sqrt()
    c = 1 + 0.5 * s
    power = eye - (eye + S) / c
    A, left = eye + power, (0.5 * s / c).square()
    while left.max() > 3e-8:
        power = dot(power, power)
        A = A + dot(A, power)
        left = left.square()
    rotated = 2 * (dot(eye - Q, A) / c) - eye
    return 1.5 * rotated - 0.5 * dot(rotated, dot(rotated.mT, rotated))


def errors(block: int, norm: float, count: int = 64) -> list[dict[str, float | int | str]]:
    """A row for each precision.

    Args:
        block: size of the blocks.
        norm: largest singular value of each skew matrix.
        count: blocks.

    Returns:
        Largest entries of ``RᵀR - I`` and of ``R`` minus float64's, and the error of ``x R`` for float32 inputs, as a
        share of the largest output.

    Example:
        >>> [row["precision"] for row in errors(8, 0.1, 2)]
        ['ieee', 'tf32', 'tf32x3', 'bf16x3', 'bf16x6']
    """
    generator = torch.Generator().manual_seed(0)
    Q = unpack(torch.randn(count, block * (block - 1) // 2, generator=generator, dtype=torch.float64), block)
    Q = (Q * (norm / torch.linalg.matrix_norm(Q, 2)[:, None, None])).float()
    x = torch.randn(count, 256, block, generator=generator)
    eye = torch.eye(block, dtype=torch.float64)
    # The kernel's convention: (I - Q)(I + Q)^-1.
    exact = torch.linalg.solve(eye + Q.double(), eye - Q.double(), left=False)
    expected, rows = x.double() @ exact, []
    for name, dot in PRECISIONS.items():
        R = cayley_as_the_kernel(Q, dot).double()
        y = dot(x, exact.float()).double()
        rows.append({
            "block_size": block, "norm": norm, "precision": name,
            "orthogonality": (R.mT @ R - eye).abs().max().item(), "rotation": (R - exact).abs().max().item(),
            "output": ((y - expected).abs().max() / expected.abs().max()).item(),
        })  # fmt: skip
    return rows


def main() -> None:
    """Print the table, and write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, help="A CSV file.")
    given = parser.parse_args()
    rows = [row for block in (16, 32) for norm in (0.1, 1.0, 10.0) for row in errors(block, norm)]
    for row in rows:
        print(f"b={row['block_size']:<3} norm {row['norm']:<5} {row['precision']:<7} RR-I {row['orthogonality']:.1e}  "
              f"R {row['rotation']:.1e}  x R {row['output']:.1e}", flush=True)  # fmt: skip
    if given.out:
        write_table(given.out, rows)


if __name__ == "__main__":
    main()
