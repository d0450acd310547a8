"""Coupling steps against their formulas written out, and against autograd's own Jacobian."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pickglass.nn.networks.coupling import (
    AffineCoupling,
    CouplingFlow,
    clamped,
    fastflow_steps,
    nll,
    realnvp_steps,
)
from pickglass.nn.networks.stacked import Stacked

H, W, D = 2, 3, 4


def flow(kind: str, channels: int = 5, seed: int = 0, strength: float = 3) -> CouplingFlow:
    """A flow far from the identity: new ones are close to it, and would hide errors."""
    torch.manual_seed(seed)
    if kind == "fastflow":
        made = CouplingFlow(fastflow_steps(channels, [3, 1, 3]))
    else:
        made = CouplingFlow(realnvp_steps(channels, D, [3, 5], hidden=6))
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            parameter.mul_(strength) if not name.endswith("gain") else parameter.fill_(1.3)
    return made.eval()


def inputs(kind: str, batch: int, channels: int = 5, seed: int = 1) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, channels, H, W, generator=generator)
    return (x,) if kind == "fastflow" else (x, torch.randn(batch, D, H, W, generator=generator))


KINDS = ["fastflow", "realnvp"]


@pytest.mark.parametrize("channels", [2, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_the_log_determinant_is_that_of_autograds_jacobian(kind: str, channels: int) -> None:
    made = flow(kind, channels).double()
    x, *condition = (t.double() for t in inputs(kind, 2, channels))
    _, log_det = made(x, *condition)
    assert log_det.shape == (2, H, W)
    for i in range(2):
        own = [c[i : i + 1] for c in condition]
        jacobian = torch.autograd.functional.jacobian(lambda v, own=own: made(v, *own)[0], x[i : i + 1])
        expected = torch.linalg.slogdet(jacobian.reshape(channels * H * W, -1)).logabsdet
        assert abs(float(expected)) > 0.5
        torch.testing.assert_close(log_det[i].sum().detach(), expected, rtol=1e-9, atol=1e-9)


def test_a_fastflow_step_is_its_formula() -> None:
    """Permute; y_b = x_b exp(2 tanh(0.1 raw_s)) + 0.1 raw_t, the first half and the odd channel kept."""
    step = flow("fastflow").steps[0]
    assert isinstance(step, AffineCoupling)
    (x,) = inputs("fastflow", 2)
    x_p = x[:, step.permutation.tolist()]
    raw = step.subnet.second(step.subnet.first(x_p[:, :3]).clamp(min=0))
    assert raw.shape[1] == 4
    y_b = x_p[:, 3:] * torch.exp(2 * torch.tanh(0.1 * raw[:, :2])) + 0.1 * raw[:, 2:]
    y, log_det = step(x)
    torch.testing.assert_close(y, torch.cat([x_p[:, :3], y_b], 1))
    torch.testing.assert_close(log_det, 2 * torch.tanh(0.1 * raw[:, 0]) + 2 * torch.tanh(0.1 * raw[:, 1]))


def test_a_realnvp_block_moves_each_half_by_the_other() -> None:
    """y_1 = x_1 e(s_2(x_2, c)) + t_2(x_2, c), y_2 = x_2 e(s_1(y_1, c)) + t_1(y_1, c), e = exp of the soft clamp."""
    made = flow("realnvp")
    first, second = made.steps[0], made.steps[1]
    assert isinstance(first, AffineCoupling)
    assert isinstance(second, AffineCoupling)
    x, c = inputs("realnvp", 2)
    order = first.permutation.roll(2)  # C = 5: halves of 2 and 3 channels
    x_1, x_2 = x[:, order[:2]], x[:, order[2:]]

    def moved(own: Tensor, read: Tensor, subnet: nn.Module) -> Tensor:
        n = own.shape[1]
        raw: Tensor = subnet(torch.cat([read, c], 1))
        return own * torch.exp(1.9 * 2 / math.pi * torch.atan(raw[:, :n] / 1.9)) + raw[:, n:]

    y_1 = moved(x_1, x_2, first.subnet)
    y_2 = moved(x_2, y_1, second.subnet)
    block = CouplingFlow([first, second])
    torch.testing.assert_close(block(x, c)[0], torch.cat([y_1, y_2], 1))


def plainly(made: CouplingFlow, x: Tensor, *condition: Tensor) -> tuple[Tensor, Tensor]:
    log_det = x.new_zeros(len(x), H, W)
    for step in made.steps:
        x, own = step(x, *condition)
        log_det = log_det + own
    return x, log_det


@pytest.mark.parametrize("block", [1, 7, 2**17])
@pytest.mark.parametrize("channels", [2, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_the_steps_one_by_one_and_so_are_all_gradients(
    kind: str, channels: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pickglass.nn.networks.coupling._BLOCK", block)
    made = flow(kind, channels).double()
    found = []
    for run in (made, lambda *given: plainly(made, *given)):
        given = [t.double().requires_grad_() for t in inputs(kind, 3, channels)]
        z, log_det = run(*given)
        learned = [*given, *made.parameters()]
        weights = torch.linspace(-1, 2, z.numel(), dtype=z.dtype).view_as(z)
        loss = (weights * z).sum() + log_det.square().sum()  # each output has a gradient of its own
        found.append([z, log_det, *torch.autograd.grad(loss, learned)])
    assert all(float(t.detach().abs().max()) > 0 for t in found[1])
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-10)


def test_a_new_realnvp_only_permutes() -> None:
    made = CouplingFlow(realnvp_steps(6, D, [3, 3]))
    x, c = inputs("realnvp", 2, 6)
    z, log_det = made(x, c)
    assert torch.equal(z.sort(1).values, x.sort(1).values)
    assert not torch.equal(z, x)
    assert bool((log_det == 0).all())


def test_the_condition_is_read() -> None:
    made = flow("realnvp")
    x, c = inputs("realnvp", 1)
    assert not torch.allclose(made(x, c)[0], made(x, -c)[0])


@pytest.mark.parametrize(("squash", "slope"), [("tanh", 1.7), ("atan", 2 / math.pi)])
def test_soft_clamp_is_odd_rising_bounded_and_reaches_its_bound(squash: str, slope: float) -> None:
    raw = torch.linspace(-30, 30, 601, dtype=torch.float64)
    value = clamped(raw, 1.7, squash)  # type: ignore[arg-type]
    assert bool((value.abs() <= 1.7).all())
    assert bool((value.diff() >= 0).all())
    torch.testing.assert_close(value, -value.flip(0))
    assert float(clamped(torch.tensor(1e9), 1.7, squash)) == pytest.approx(1.7, rel=1e-6)  # type: ignore[arg-type]
    assert float(clamped(torch.tensor(1e-6), 1.7, squash)) == pytest.approx(slope * 1e-6, rel=1e-3)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_no_step_scales_beyond_its_clamp(kind: str) -> None:
    made = flow(kind)
    x, *condition = inputs(kind, 2)
    for step in made.steps:
        assert isinstance(step, AffineCoupling)
        moved = x.shape[1] - step.conditioning
        _, log_det = step(1e6 * x, *condition)
        assert float(log_det.abs().max()) <= moved * step.limit + 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_permutations_are_permutations_fixed_and_a_positions_own(kind: str) -> None:
    def make() -> CouplingFlow:
        return CouplingFlow(fastflow_steps(16, [3, 1]) if kind == "fastflow" else realnvp_steps(16, D, [3, 3]))

    stack = Stacked(make, 2, seed=3)
    named = {name: b for name, b in stack.named_buffers() if name.endswith("permutation")}
    assert len(named) == len(stack.tree.steps)
    assert set(named) <= set(stack.state_dict())  # saved with the model
    for both in named.values():
        assert both.shape == (2, 16)
        assert torch.equal(both.sort(1).values, torch.arange(16).expand(2, -1))
    first = next(iter(named.values()))
    assert not torch.equal(first[0], first[1])
    assert torch.equal(first[1], next(b for b in Stacked(make, 1, seed=4).buffers())[0])


def test_nll_is_the_mean_over_kept_cells_then_images() -> None:
    rng = np.random.default_rng(0)
    z, log_det = rng.normal(size=(3, 2, 4, H, W)), rng.normal(size=(3, 2, H, W))
    keep = rng.random((3, 2, H, W)) < 0.5
    keep[..., 0, 0] = True
    keep[1, 0] = False  # an image of which nothing counts at position 0 is left out of its mean
    for kept in (None, keep):
        expected = np.zeros(2)
        for p in range(2):
            images = [b for b in range(3) if kept is None or kept[b, p].any()]
            for b in images:
                cells = [
                    0.5 * sum(z[b, p, c, i, j] ** 2 for c in range(4)) - log_det[b, p, i, j]
                    for i in range(H)
                    for j in range(W)
                    if kept is None or kept[b, p, i, j]
                ]
                expected[p] += sum(cells) / len(cells) / len(images)
        got = nll(torch.from_numpy(z), torch.from_numpy(log_det), None if kept is None else torch.from_numpy(kept))
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-12)


@pytest.mark.slow
def test_a_known_gaussian_is_found() -> None:
    """Features of independent normals with known scales: no flow can fall below their entropy, and ours gets near."""
    torch.manual_seed(0)
    scales = torch.tensor([0.5, 1.0, 2.0, 4.0])
    x = torch.randn(32, 1, 4, 4, 4) * scales[:, None, None]
    stack = Stacked(lambda: CouplingFlow(fastflow_steps(4, [1] * 6)), 1, seed=0)
    optimiser = torch.optim.Adam(stack.parameters(), lr=0.02)
    before = float(nll(*stack(x)).detach())
    for _ in range(100):
        optimiser.zero_grad()
        loss = nll(*stack(x))
        loss.sum().backward()
        optimiser.step()
    least = 4 * 0.5 + float(scales.log().sum())  # 0.5 E z^2 summed, plus log of the scales
    assert before > least + 5
    assert least - 0.3 < float(loss.detach()) < least + 0.3
