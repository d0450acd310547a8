"""Any network is held once per position: its parameters and buffers lead with the position axis P.

A method writes its student, flow or decoder as an ordinary module for one position; :class:`Stacked` holds P of them
as one tree of tensors with a leading axis P. Optimisers work element by element, so training the stack is training P
networks apart, and one model file holds them all.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pickglass.nn.maps import DrawnFrom, ProcessLock

__all__ = ["Stacked", "at_position", "copy_into", "named_tensors"]

Network = TypeVar("Network", bound=nn.Module)


class Stacked(nn.Module):
    """P networks of one architecture are held in one tree of tensors.

    Args:
        make: builds the network of one position, with random weights from torch's default generator.
        positions: P.
        seed: position p is built from ``seed + p``; the caller's random numbers are left alone.

    Every parameter and buffer of ``tree`` has the shape of the single network's with P in front. Batch normalisation
    in training updates the running statistics of its own position; the network may write into a buffer, but not put
    another in its place.

    Example:
        >>> stack = Stacked(lambda: nn.Conv2d(3, 8, 3, padding=1), positions=2, seed=0)
        >>> tuple(stack.tree.weight.shape), tuple(stack(torch.zeros(5, 2, 3, 4, 4)).shape)
        ((2, 8, 3, 3, 3), (5, 2, 8, 4, 4))
    """

    def __init__(self, make: Callable[[], nn.Module], positions: int, seed: int) -> None:
        super().__init__()
        members = []
        for position in range(positions):
            with DrawnFrom(seed + position):
                members.append(make())
        self.positions = positions
        self.tree = members[0]
        self._turn = ProcessLock()
        stacks: dict[Tensor, Tensor] = {}  # a tensor that stands in two places stays one
        for alike in zip(*(member.modules() for member in members), strict=True):
            for kind in ("_parameters", "_buffers"):
                for leaf, first in getattr(alike[0], kind).items():
                    if first is None:
                        continue
                    if first not in stacks:
                        stack = torch.stack([getattr(module, kind)[leaf].detach() for module in alike])  # (P, ...)
                        learned = isinstance(first, nn.Parameter)
                        stacks[first] = nn.Parameter(stack, requires_grad=first.requires_grad) if learned else stack
                    getattr(alike[0], kind)[leaf] = stacks[first]

    def forward(self, *inputs: Any) -> Any:
        """Run each position's network on its inputs (B, P, ...), or nested tuples of such; outputs are (B, P, ...) too.

        Anything else among the inputs goes to each network as it is.
        """
        with self._turn:  # the tree holds the tensors of one position while it runs, so threads take turns
            return self._each_position(*inputs)

    def _each_position(self, *inputs: Any) -> Any:
        places: list[tuple[dict[str, Any], str, Tensor, Sequence[Tensor]]] = []
        for module in self.tree.modules():
            # unbind: the backward of P single selections would write P gradients of the whole stack
            places += [(module._parameters, n, t, t.unbind()) for n, t in module._parameters.items() if t is not None]
            # selections: these may be written to, as running statistics are
            places += [
                (module._buffers, n, t, [t[p] for p in range(self.positions)])
                for n, t in module._buffers.items()
                if t is not None
            ]
        results = []
        try:
            # torch.func.functional_call would do this, but refuses to be exported
            for p in range(self.positions):
                for holder, leaf, _, per_position in places:
                    holder[leaf] = per_position[p]
                results.append(self.tree(*_position(inputs, p)))
        finally:
            for holder, leaf, stack, _ in places:
                holder[leaf] = stack
        return _joined(results)


def at_position(network: Network, p: int) -> Network:
    """Return the network of position p alone, P = 1, frozen, in eval mode and in the same memory.

    Args:
        network: whose tensors all lead with P, such as a :class:`Stacked` or a module of several.
        p: the position.
    """
    views: dict[int, Any] = {id(t): t[p : p + 1] for t in network.buffers()}  # (1, ...)
    for parameter in network.parameters():
        views[id(parameter)] = nn.Parameter(parameter.detach()[p : p + 1], requires_grad=False)
    alone = copy.deepcopy(network, views)  # takes these for copies that were made already
    for module in alone.modules():
        if isinstance(module, Stacked):
            module.positions = 1
    return alone.eval()


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers of a module by name, also those that a model file leaves out."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


@torch.no_grad()
def copy_into(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors into those of a module with the same names."""
    targets = named_tensors(module)
    for name, tensor in tensors.items():
        targets[name].copy_(tensor)


def _position(value: Any, p: int) -> Any:
    if isinstance(value, Tensor):
        return value[:, p]
    return tuple(_position(v, p) for v in value) if isinstance(value, tuple) else value


def _joined(results: list[Any]) -> Any:
    if isinstance(results[0], Tensor):  # (B, P, ...); of one position as it lies in the memory
        return results[0].unsqueeze(1) if len(results) == 1 else torch.stack(results, dim=1)
    return tuple(_joined([r[i] for r in results]) for i in range(len(results[0])))
