"""Float32 that is float32: no TF32, no bfloat16 behind a matrix product, and the bound on what rounding can do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["exact_float32", "rounding_bound"]


@contextmanager
def exact_float32() -> Iterator[None]:
    """Matrix products inside run in full float32; the caller's setting comes back afterwards."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def rounding_bound(terms: int, dtype: torch.dtype = torch.float32) -> float:
    """Relative error bound of a sum of products of that many terms in any order of summation.

    gamma_n = n u / (1 - n u), u half the machine epsilon (Higham 2002, section 3.1), with three roundings to spare
    for what surrounds the sum.
    """
    u = torch.finfo(dtype).eps / 2
    n = terms + 3
    return n * u / (1 - n * u)
