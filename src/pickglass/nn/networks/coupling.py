"""Normalising flows over feature grids are made of affine coupling steps, which know by how much they change volumes.

An affine coupling step (Dinh, Sohl-Dickstein, Bengio: "Density estimation using Real NVP", ICLR 2017, eq. 7-8) leaves
the channels x_a as they are and scales and shifts the others, cell by cell, by what a sub-network reads in x_a:
y_b = x_b * exp(s(x_a)) + t(x_a). Its Jacobian is triangular, so log |det| is the sum of s. A fixed permutation of the
channels before each step lets all of them be moved in turn. A soft clamp keeps s within bounds, so that no step can
scale by more than exp(clamp) or less than exp(-clamp).

On a CPU the step's arithmetic goes through the memory and not through the processor: torch's own way writes and reads
each map some forty times a training step. There a flow is run on rows (:class:`_Coupled`): a cell's channels lie side
by side, as the convolutions want them too, and each block of rows stays in the cache from one permutation to the next.

Letters: B images, P positions, C channels, D channels of the condition, h x w cells, K channels kept as they are,
N = B h w rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pickglass.nn.maps import batch_mean, cells_of, kept_mean

__all__ = ["AffineCoupling", "ConvSubnet", "CouplingFlow", "clamped", "fastflow_steps", "nll", "realnvp_steps"]

Squash = Literal["tanh", "atan"]

_GAIN = 0.1  # of a FastFlow sub-network's output, so that a new step is close to the identity
_BLOCK = 2**17  # numbers of a block of rows: it and what is made of it stay in a core's cache


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
        raw: Tensor = self.before_gain(x).to(x.dtype) * self.gain  # what is exponentiated stays float32 under autocast
        return raw

    def before_gain(self, x: Tensor) -> Tensor:
        """Compute raw log-scales and shifts that the gain has yet to be multiplied with."""
        out: Tensor = self.second(self.first(x).relu_())
        return out


class _Coupled(torch.autograd.Function):
    """What is left of a step once its sub-network has run, and the next step's permutation, on rows."""

    @staticmethod
    def forward(
        ctx: Any,
        a: Tensor,
        b: Tensor,
        raw: Tensor,
        gain: float | Tensor,
        limit: float,
        squash: Squash,
        order: Tensor,
        k: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Scale and shift.

        Args:
            ctx: for the way back.
            a: (N, K) channels that stay as they are.
            b: (N, C - K) the others.
            raw: (N, 2 (C - K)) log-scales and shifts before the gain; under autocast in half precision.
            gain, limit, squash: see :class:`ConvSubnet` and :func:`clamped`.
            order: (C,) which channels the next step reads, and in which order.
            k: how many of them condition the others there.

        Returns:
            The channels that condition the next step, (N, k), and the others, (N, C - k); log |det|, (N,).
        """
        d = b.shape[1]
        first, others, log_det = a.new_empty(len(a), k), a.new_empty(len(a), len(order) - k), a.new_empty(len(a))
        scales = torch.empty_like(b, memory_format=torch.contiguous_format)
        for part in _blocks(a, b):
            s = clamped(raw[part, :d].to(b.dtype) * gain, limit, squash)
            scales[part] = s
            torch.sum(s, 1, out=log_det[part])
            moved = s.exp_().mul_(b[part]).add_(raw[part, d:].to(b.dtype) * gain)
            y = torch.cat([a[part], moved], dim=1)
            torch.index_select(y, 1, order[:k], out=first[part])
            torch.index_select(y, 1, order[k:], out=others[part])
        learned = isinstance(gain, Tensor)
        ctx.save_for_backward(b, scales, order, *((raw, gain) if learned else ()))
        ctx.gain, ctx.limit, ctx.squash, ctx.raw_dtype = gain if not learned else None, limit, squash, raw.dtype
        return first, others, log_det

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_first: Tensor, d_others: Tensor, d_log_det: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of a, b, raw and, where it is learned, the gain."""
        b, scales, order, *learned = ctx.saved_tensors
        gain = learned[1] if learned else ctx.gain
        d = b.shape[1]
        back = order.argsort()
        d_a, d_b = b.new_empty(len(b), len(order) - d), torch.empty_like(scales)
        d_raw = b.new_empty(len(b), 2 * d, dtype=ctx.raw_dtype)
        d_gain = torch.zeros_like(gain) if learned else None
        for part in _blocks(d_first, d_others):
            d_y = torch.cat([d_first[part], d_others[part]], dim=1)
            torch.index_select(d_y, 1, back[:-d], out=d_a[part])
            d_moved = d_y.index_select(1, back[-d:])  # also the gradient of the shift
            s = scales[part]
            scaled = torch.mul(s.exp(), d_moved, out=d_b[part])
            d_s = (scaled * b[part]).add_(d_log_det[part, None]).mul_(_slope(s, ctx.limit, ctx.squash))
            if d_gain is not None:
                d_gain += (d_s * learned[0][part, :d]).sum() + (d_moved * learned[0][part, d:]).sum()
            d_raw[part, :d] = d_s.mul_(gain)
            d_raw[part, d:] = d_moved.mul_(gain)
        return d_a, d_b, d_raw, d_gain, None, None, None, None


def _slope(s: Tensor, limit: float, squash: Squash) -> Tensor:
    """Compute by how much :func:`clamped` rises where it is s."""
    if squash == "tanh":
        return s.square().mul_(-1 / limit).add_(limit)
    return (s * (math.pi / (2 * limit))).cos_().square_().mul_(2 / math.pi)


def _blocks(*halves: Tensor) -> list[slice]:
    """Divide rows into blocks that stay in the cache."""
    n = max(1, _BLOCK // sum(half.shape[1] for half in halves))
    return [slice(i, i + n) for i in range(0, len(halves[0]), n)]


def _rows(maps: Tensor) -> Tensor:
    """Turn maps (B, C, h, w) into rows (N, C); a view where the channels of a cell lie side by side."""
    return maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])


def _maps(rows: Tensor, images: int, cells: tuple[int, int]) -> Tensor:
    """View rows (N, C) as maps (B, C, h, w)."""
    return rows.view(images, *cells, rows.shape[1]).permute(0, 3, 1, 2)


class AffineCoupling(nn.Module):
    """A step permutes the channels, keeps the first K, and scales and shifts the others by what the sub-network reads.

    Args:
        permutation: (C,) int64; output channel i is input channel ``permutation[i]``. Saved with the weights.
        conditioning: K, how many channels condition the others and stay as they are.
        subnet: (B, K + D, h, w) -> (B, 2 (C - K), h, w), raw log-scales first, then shifts.
        limit, squash: of the log-scales; see :func:`clamped`.
    """

    permutation: Tensor

    def __init__(
        self, permutation: Tensor, conditioning: int, subnet: ConvSubnet, limit: float, squash: Squash
    ) -> None:
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
        if x.device.type == "cpu" and not torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            return self._on_rows(x, condition)
        log_det = x.new_zeros(x.shape[0], *x.shape[2:])  # (B, h, w)
        for step in self.steps:
            x, step_log_det = step(x, condition)
            log_det = log_det + step_log_det
        return x, log_det

    def _on_rows(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """Run all steps on the channels of the cells as rows (N, C)."""
        (images, channels), cells = x.shape[:2], cells_of(x)
        steps: list[AffineCoupling] = list(self.steps)  # type: ignore[arg-type]
        kept = [step.conditioning for step in steps]
        orders = [step.permutation for step in steps[1:]] + [torch.arange(channels)]  # after each step
        rows = _rows(x.index_select(1, steps[0].permutation))
        a, b = rows[:, : kept[0]].contiguous(), rows[:, kept[0] :]  # (N, K), (N, C - K)
        log_det = x.new_zeros(len(rows))
        for step, order, k in zip(steps, orders, [*kept[1:], channels], strict=True):
            read = _maps(a, images, cells)
            raw = _rows(step.subnet.before_gain(read if condition is None else torch.cat([read, condition], dim=1)))
            a, b, step_log_det = _Coupled.apply(a, b, raw, step.subnet.gain, step.limit, step.squash, order, k)
            log_det = log_det + step_log_det
        return _maps(a, images, cells), log_det.view(images, *cells)


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
