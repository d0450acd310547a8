"""Matrix products go over units and the coarser units they lie under; a covariance gives its inverse Cholesky factor.

Letters: P positions, U units of a level, V units of the level before it (coarser), d channels of a level, c channels of
all coarser ones, B images.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pickglass.errors import InputError

__all__ = ["inverse_factor", "stack_channels", "times_parent"]


def times_parent(rows: Tensor, coarser: Tensor, parent: Tensor, siblings: int) -> Tensor:
    """Multiply each unit's rows by the matrix of the coarser unit it lies under.

    Args:
        rows: (P, U, m, c).
        coarser: (P, V, c, q).
        parent: (U,) coarser unit of each unit, rising.
        siblings: number of units under each coarser one, where that is the same for all; 0 where it varies.

    Returns:
        (P, U, m, q).
    """
    if not siblings:
        return rows @ coarser[:, parent]
    p, u, m, c = rows.shape
    # all units under a parent in one product: nothing is copied out
    product = rows.reshape(p, u // siblings, siblings * m, c) @ coarser
    spread: Tensor = product.view(p, u, m, coarser.shape[3])
    return spread


def stack_channels(coarser: Tensor, own: Tensor, parent: Tensor) -> Tensor:
    """Put a level's channels below those of all coarser levels.

    Args:
        coarser: (..., V, c, B).
        own: (..., U, d, B), of the level.
        parent: (U,) coarser unit of each unit.

    Returns:
        (..., U, c + d, B).
    """
    return torch.cat([coarser.index_select(-3, parent), own], dim=-2) if coarser.shape[-2] else own


def inverse_factor(covariance: Tensor, eps: float) -> Tensor:
    """Invert the Cholesky factor L of covariance + eps I = L L^T, (..., d, d).

    Raises:
        InputError: eps is too small for the rounding of the covariance, or the features are not finite.
    """
    identity = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    factor, info = torch.linalg.cholesky_ex(covariance + eps * identity)
    if bool((info != 0).any()) or not bool(torch.isfinite(factor).all()):
        raise InputError(
            f"a covariance is not positive definite with eps={eps:g}: raise eps to 0.01; if it is as high already, "
            "the features are not finite: look for NaN or infinity in them"
        )
    inverse: Tensor = torch.linalg.solve_triangular(factor, identity, upper=False)
    return inverse
