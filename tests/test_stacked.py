"""A stack of P networks against P networks held one by one: the same in every respect."""

from __future__ import annotations

import io
import warnings

import numpy as np
import openvino
import pytest
import torch
from torch import Tensor, nn

from pickglass.nn.networks.stacked import Stacked, at_position

P, SEED = 3, 5


class Net(nn.Module):
    """Two outputs, normalisation with running statistics, a buffer of its own and a part that does not learn."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.out = nn.Conv2d(4, 1, 1, bias=False).requires_grad_(False)
        self.register_buffer("shift", torch.randn(4, 1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.norm(self.conv(x)) + self.shift
        return y, self.out(y.relu()).flatten(1)


def stack_and_singles() -> tuple[Stacked, list[Net]]:
    singles = []
    for p in range(P):
        torch.default_generator.manual_seed(SEED + p)
        singles.append(Net())
    return Stacked(Net, P, SEED), singles


@torch.no_grad()
def test_one_position_alone_in_the_same_memory() -> None:
    stack, _ = stack_and_singles()
    images = some_images()
    stack.eval()
    wanted = stack(images)
    stack.train()
    for p in range(P):
        alone = at_position(stack, p)
        for output, whole in zip(alone(images[:, p : p + 1]), wanted, strict=True):
            torch.testing.assert_close(output, whole[:, p : p + 1])
        assert not any(parameter.requires_grad for parameter in alone.parameters())
        for name, tensor in alone.state_dict().items():
            assert tensor.untyped_storage().data_ptr() == stack.state_dict()[name].untyped_storage().data_ptr(), name
    assert stack.training  # left as it was
    assert stack.positions == P


def some_images(b: int = 4) -> Tensor:
    return torch.randn(b, P, 2, 6, 5, generator=torch.Generator().manual_seed(1))


def test_built_as_each_position_alone_would_be() -> None:
    stack, singles = stack_and_singles()
    states = [single.state_dict() for single in singles]
    tensors = stack.tree.state_dict()
    assert list(tensors) == list(states[0])
    for name, tensor in tensors.items():
        assert torch.equal(tensor, torch.stack([state[name] for state in states])), name
    needs = {name: parameter.requires_grad for name, parameter in stack.tree.named_parameters()}
    assert needs == {name: parameter.requires_grad for name, parameter in singles[0].named_parameters()}
    assert not torch.equal(tensors["conv.weight"][0], tensors["conv.weight"][1])


@pytest.mark.parametrize("training", [True, False])
def test_forward_and_backward_equal_to_single_networks(training: bool) -> None:
    stack, singles = stack_and_singles()
    x = some_images().requires_grad_()
    outputs = stack.train(training)(x)
    (outputs[0].square().mean() + outputs[1].sum()).backward()
    x_grad = x.grad.clone()
    for p, single in enumerate(singles):
        own = some_images()[:, p].requires_grad_()
        y, flat = single.train(training)(own)
        assert torch.equal(outputs[0][:, p], y)
        assert torch.equal(outputs[1][:, p], flat)
        (y.square().mean() / P + flat.sum()).backward()
        torch.testing.assert_close(x_grad[:, p], own.grad)
        for name, parameter in single.named_parameters():
            stacked = stack.tree.get_parameter(name).grad
            assert (stacked is None) == (parameter.grad is None), name
            if stacked is not None:
                torch.testing.assert_close(stacked[p], parameter.grad, msg=name)


def test_batch_norm_follows_its_own_position_in_training_only() -> None:
    stack, singles = stack_and_singles()
    scale = torch.tensor([1.0, 10.0, 100.0]).view(1, P, 1, 1, 1)
    for _ in range(3):
        stack.train()(some_images() * scale)
    stack.eval()(some_images() + 1000)
    for p, single in enumerate(singles):
        for _ in range(3):
            single.train()(some_images()[:, p] * scale[0, p])
        for name, buffer in single.named_buffers():
            assert torch.equal(stack.tree.get_buffer(name)[p], buffer), name
    assert stack.tree.norm.num_batches_tracked.tolist() == [3, 3, 3]
    assert stack.tree.norm.running_var[2].mean() > 100 * stack.tree.norm.running_var[0].mean()


def test_state_leads_with_the_position_and_goes_into_another_stack() -> None:
    stack, _ = stack_and_singles()
    stack.train()(some_images())
    state = stack.state_dict()
    assert all(name.startswith("tree.") and tensor.shape[0] == P for name, tensor in state.items())
    other = Stacked(Net, P, seed=99)
    other.load_state_dict(state)
    with torch.no_grad():
        for one, two in zip(stack.eval()(some_images()), other.eval()(some_images()), strict=True):
            assert torch.equal(one, two)


def test_inputs_may_be_nested() -> None:
    class Sum(nn.Module):
        def forward(self, xs: tuple[Tensor, tuple[Tensor, Tensor]], factor: Tensor) -> Tensor:
            return (xs[0] + xs[1][0] * xs[1][1]) * factor

    a, b, c, d = torch.randn(4, 5, P, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Stacked(Sum, P, 0)((a, (b, c)), d), (a + b * c) * d)


def test_what_stands_in_two_places_stays_one() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(3, 3, bias=False)
            self.two = nn.Linear(3, 3, bias=False)
            self.two.weight = self.one.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(x))

    stack = Stacked(Tied, P, SEED)
    (parameter,) = stack.parameters()
    x = torch.randn(4, P, 3, generator=torch.Generator().manual_seed(0))
    expected = torch.einsum("poj,pji,bpi->bpo", parameter, parameter, x)
    torch.testing.assert_close(stack(x), expected)


def test_an_error_inside_leaves_the_stack_whole() -> None:
    stack, _ = stack_and_singles()
    before = {name: tensor.clone() for name, tensor in stack.state_dict().items()}
    with pytest.raises(RuntimeError):
        stack.eval()(torch.zeros(2, P, 5, 6, 5))  # 5 channels instead of 2
    assert {name: tensor.shape for name, tensor in stack.state_dict().items()} == {
        n: t.shape for n, t in before.items()
    }
    assert all(torch.equal(tensor, before[name]) for name, tensor in stack.state_dict().items())


def test_the_callers_random_numbers_are_left_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    Stacked(Net, P, SEED)
    assert torch.equal(torch.rand(4), expected)


def test_exported_it_answers_the_same() -> None:
    stack, _ = stack_and_singles()
    stack.train()(some_images())
    stack.eval()
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        torch.onnx.export(
            stack, (some_images(2),), buffer, dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "batch"}}
        )
    core = openvino.Core()
    run = core.compile_model(core.read_model(buffer.getvalue()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    x = some_images(7)  # another batch than it was traced with
    with torch.no_grad():
        expected = stack(x)
    for one, two in zip(run(x.numpy()).values(), expected, strict=True):
        np.testing.assert_allclose(one, two.numpy(), rtol=1e-4, atol=1e-5)
