"""Normalising flows over feature grids are made of affine coupling steps, which know by how much they change volumes.

An affine coupling step (Dinh, Sohl-Dickstein, Bengio: "Density estimation using Real NVP", ICLR 2017, eq. 7-8) leaves
the channels x_a as they are and scales and shifts the others, cell by cell, by what a sub-network reads in x_a:
y_b = x_b * exp(s(x_a)) + t(x_a). Its Jacobian is triangular, so log |det| is the sum of s. A fixed permutation of the
channels before each step lets all of them be moved in turn. A soft clamp keeps s within bounds, so that no step can
scale by more than exp(clamp) or less than exp(-clamp).

Letters: B images, P positions, C channels, D channels of the condition, h x w cells, K channels kept as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from pickglass.nn.maps import batch_mean, kept_mean

__all__ = ["AffineCoupling", "ConvSubnet", "CouplingFlow", "clamped", "fastflow_steps", "nll", "realnvp_steps"]

Squash = Literal["tanh", "atan"]

_GAIN = 0.1  # of a FastFlow sub-network's output, so that a new step is close to the identity


def clamped(raw: Tensor, limit: float, squash: Squash) -> Tensor:
    """Squeeze ``raw`` smoothly into -limit..limit.

    ``"tanh"``: limit tanh(raw), slope ``limit`` at 0; ``"atan"``: limit 2/pi atan(raw / limit), slope 2/pi.
    """
    if squash == "tanh":
        return limit * torch.tanh(raw)
    return limit * (2 / math.pi) * torch.atan(raw / limit)


class ConvSubnet(nn.Module):
    """The sub-network is convolution, ReLU, convolution, times a gain: (B, inputs, h, w) -> (B, outputs, h, w).

    Args:
        inputs, hidden, outputs: channels.
        kernel: side of both kernels, in cells, odd.
        gain: factor of the output; None: learned, one number that starts at 0, so that a new step is the identity.
        padding_mode: beyond the border: ``"zeros"`` or ``"replicate"``.
    """

    def __init__(
        self,
        inputs: int,
        hidden: int,
        outputs: int,
        kernel: int,
        gain: float | None,
        padding_mode: Literal["zeros", "replicate"],
    ) -> None:
        super().__init__()
        pad = kernel // 2
        self.first = nn.Conv2d(inputs, hidden, kernel, padding=pad, padding_mode=padding_mode)
        self.second = nn.Conv2d(hidden, outputs, kernel, padding=pad, padding_mode=padding_mode)
        self.gain: float | Tensor = nn.Parameter(torch.zeros(1)) if gain is None else gain

    def forward(self, x: Tensor) -> Tensor:
        """Compute raw log-scales and shifts."""
        out = self.second(torch.relu(self.first(x)))
        raw: Tensor = out.to(x.dtype) * self.gain  # what is added up or exponentiated stays float32 under autocast
        return raw


class AffineCoupling(nn.Module):
    """A step permutes the channels, keeps the first K, and scales and shifts the others by what the sub-network reads.

    Args:
        permutation: (C,) int64; output channel i is input channel ``permutation[i]``. Saved with the weights.
        conditioning: K, how many channels condition the others and stay as they are.
        subnet: (B, K + D, h, w) -> (B, 2 (C - K), h, w), raw log-scales first, then shifts.
        limit, squash: of the log-scales; see :func:`clamped`.
    """

    permutation: Tensor

    def __init__(self, permutation: Tensor, conditioning: int, subnet: nn.Module, limit: float, squash: Squash) -> None:
        super().__init__()
        self.conditioning = conditioning
        self.limit = limit
        self.squash: Squash = squash
        self.subnet = subnet
        self.register_buffer("permutation", permutation)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run the step.

        Args:
            x: (B, C, h, w).
            condition: (B, D, h, w), read by the sub-network; None: nothing.

        Returns:
            y (B, C, h, w), and log |det dy/dx| by cell, (B, h, w).
        """
        x = x.index_select(1, self.permutation)
        x_a, x_b = x[:, : self.conditioning], x[:, self.conditioning :]  # (B, K, h, w), (B, C - K, h, w)
        s, t = self._scale_and_shift(x_a, condition)
        return torch.cat([x_a, x_b * s.exp() + t], dim=1), s.sum(1)

    def _scale_and_shift(self, x_a: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        read = x_a if condition is None else torch.cat([x_a, condition], dim=1)  # (B, K + D, h, w)
        raw, t = self.subnet(read).chunk(2, dim=1)  # (B, C - K, h, w) each
        return clamped(raw, self.limit, self.squash), t


class CouplingFlow(nn.Module):
    """A flow runs its steps one after the other.

    The log-determinant is kept by cell, as each step's is a sum over cells; only its sum over all cells is the change
    of volume, and the cells' shares of it serve to leave cells out.
    """

    def __init__(self, steps: Sequence[AffineCoupling]) -> None:
        super().__init__()
        self.steps = nn.ModuleList(steps)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run all steps.

        Args:
            x: (B, C, h, w).
            condition: (B, D, h, w), read by every sub-network; None: nothing.

        Returns:
            z (B, C, h, w), and log |det dz/dx| by cell, (B, h, w).
        """
        log_det = x.new_zeros(x.shape[0], *x.shape[2:])  # (B, h, w)
        for step in self.steps:
            x, step_log_det = step(x, condition)
            log_det = log_det + step_log_det
        return x, log_det


def fastflow_steps(
    channels: int, kernels: Sequence[int], hidden_ratio: float = 1.0, clamp: float = 2.0
) -> list[AffineCoupling]:
    """Make the steps of FastFlow: each has a random permutation, and half of the channels condition the other half.

    Args:
        channels: C, at least 2.
        kernels: side of the sub-network's kernels, one per step.
        hidden_ratio: its hidden channels per channel it reads.
        clamp: bound of the log-scales; they are clamp tanh(0.1 raw), the shifts 0.1 raw.

    Weights and permutations are drawn from torch's default generator.
    """
    conditioning = channels - channels // 2
    hidden = max(1, int(conditioning * hidden_ratio))
    return [
        AffineCoupling(
            torch.randperm(channels),
            conditioning,
            ConvSubnet(conditioning, hidden, 2 * (channels - conditioning), kernel, _GAIN, "zeros"),
            clamp,
            "tanh",
        )
        for kernel in kernels
    ]


def realnvp_steps(
    channels: int, condition: int, kernels: Sequence[int], hidden: int = 64, clamp: float = 1.9
) -> list[AffineCoupling]:
    """Make the steps of AST's conditional RealNVP: in each block both halves are moved, each conditioned on the other.

    A block is two steps: the first brings the channels into a random order (x_2, x_1) and moves x_1; the second swaps
    the halves and moves x_2 by what the first made of x_1.

    Args:
        channels: C, at least 2.
        condition: D.
        kernels: side of the sub-networks' kernels, one per block.
        hidden: hidden channels of the sub-networks.
        clamp: bound of the log-scales; they are clamp 2/pi atan(raw / clamp).

    Weights and permutations are drawn from torch's default generator.
    """
    half, rest = channels // 2, channels - channels // 2
    steps = []
    for kernel in kernels:
        halves = [
            (torch.randperm(channels), rest),  # (x_2, x_1): x_2 stays
            (torch.arange(channels).roll(half), half),  # (y_1, x_2): y_1 stays
        ]
        for permutation, conditioning in halves:
            subnet = ConvSubnet(
                conditioning + condition, hidden, 2 * (channels - conditioning), kernel, None, "replicate"
            )
            steps.append(AffineCoupling(permutation, conditioning, subnet, clamp, "atan"))
    return steps


def nll(z: Tensor, log_det: Tensor, keep: Tensor | None = None) -> Tensor:
    """Compute the negative log-likelihood under a standard normal z, without its constant, in nats per cell: (P,).

    The mean over the cells of an image that count, then over the images that have such cells, of 0.5 sum over channels
    of z^2, less ``log_det``; see :func:`pickglass.nn.maps.batch_mean`.

    Args:
        z: (B, P, C, h, w).
        log_det: (B, P, h, w), by cell.
        keep: (B, P, h, w) bool, cells that count; None: all.
    """
    cells = 0.5 * z.square().sum(2) - log_det  # (B, P, h, w)
    if keep is None:
        return cells.mean((0, 2, 3))
    return batch_mean(kept_mean(cells, keep), keep)
