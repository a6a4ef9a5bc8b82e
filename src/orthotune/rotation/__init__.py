"""The mathematics of orthogonal finetuning on plain tensors; knows nothing of modules, files or PEFT.

Notation used everywhere: ``Q`` is skew-symmetric, ``R`` a rotation, both ``(..., b, b)`` with ``b`` the block size;
``v`` is the packed strict upper triangle of ``Q``, ``(..., b (b - 1) / 2)``.
"""
