"""What follows from the size of the images alone is computed once, and stands in the graph as a constant.

A vision transformer enlarges its table of positions, and draws up rotary positions and masks of windows, for the size
that comes. The way to ONNX knows no operation for some of that (bicubic with antialiasing), and computing it for every
image is a waste. Whatever depends on the number of images or on their pixels stays as it is.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from pickglass.features.backbones.per_size import RotaryTable, WindowMask

__all__ = ["BySize", "folded", "has_tables"]


class BySize(nn.Module):
    """Several graphs of one network, each for one size (H, W) of its input, stand in for it."""

    def __init__(self, graphs: dict[tuple[int, int], nn.Module]) -> None:
        super().__init__()
        self.graphs = nn.ModuleDict({f"{h}x{w}": graph for (h, w), graph in graphs.items()})

    def forward(self, images: Tensor) -> Any:
        """Run the graph for the size of these images (B, 3, H, W)."""
        return self.graphs[f"{int(images.shape[2])}x{int(images.shape[3])}"](images)


def has_tables(body: fx.GraphModule) -> bool:
    """Say whether a graph computes anything, but numbers, of the size of its input and of its own tensors alone."""
    known: set[fx.Node] = set()  # what follows from these
    for node in body.graph.nodes:
        module = body.get_submodule(str(node.target)) if node.op == "call_module" else None
        before = node.all_input_nodes
        if isinstance(module, (RotaryTable, WindowMask)):
            return True
        if node.op == "get_attr":
            known.add(node)
        elif before and all(n in known for n in before):
            if any(n.op == "get_attr" for n in before):
                return True
            known.add(node)
        elif before and _side(node):
            known.add(node)
    return False


def _side(node: fx.Node) -> bool:
    """Say whether a node is one number of a size, and not the first, which counts the images."""
    place: Any = None
    if node.op == "call_method" and node.target == "size" and len(node.args) > 1:
        place = node.args[1]
    if node.op == "call_function" and node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        whole = node.args[0]
        if whole.target is getattr and whole.args[1:] == ("shape",):
            place = node.args[1]
    return isinstance(place, int) and place != 0


@torch.no_grad()
def folded(body: fx.GraphModule, example: Tensor) -> fx.GraphModule:
    """Return a graph for images of one size; it shares its weights with the one that was given, which stays as it is.

    Args:
        body: reads images (B, 3, H, W).
        example: (1, 3, H, W) of that size.
    """
    one, two = _Still(body), _Still(body)
    one.run(example)
    two.run(example.repeat(2, 1, 1, 1))  # a number that counts images, at whatever place of a size, differs
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(body.graph, copies))
    values = {
        copies[node]: value
        for node, value in one.values.items()
        if node in copies and _same(value, two.values.get(node))
    }
    own = fx.GraphModule(body, graph)
    for path, module in own.named_modules():  # the first versions of torch 2 copy every buffer as one to be saved
        module._non_persistent_buffers_set |= (
            module._buffers.keys() & body.get_submodule(path)._non_persistent_buffers_set
        )
    kept: dict[fx.Node, fx.Node] = {}

    def constant(node: fx.Node) -> Any:
        """Return what takes the place of a node: its number, or a tensor that is read by name."""
        if node not in values or node.op == "get_attr":
            return node
        value = values[node]
        if not isinstance(value, Tensor):
            return value
        if node not in kept:
            name = f"folded{len(kept)}"
            own.register_buffer(name, value.detach().clone(), persistent=False)
            with graph.inserting_before(node):
                kept[node] = graph.get_attr(name)
        return kept[node]

    for node in list(graph.nodes):
        if node not in values and node not in kept.values():
            node.args = fx.map_arg(node.args, constant)
            node.kwargs = fx.map_arg(node.kwargs, constant)
    for node in reversed(list(graph.nodes)):
        if node in values and not node.users:  # also assertions about sizes, which held
            graph.erase_node(node)
    graph.lint()
    own.recompile()
    return own.eval()


def _same(value: Any, other: Any) -> bool:
    if isinstance(value, Tensor):
        return isinstance(other, Tensor) and torch.equal(value, other)
    if isinstance(value, (tuple, list)):
        return isinstance(other, (tuple, list)) and len(value) == len(other) and all(map(_same, value, other))
    return bool(value == other)


class _Still(fx.Interpreter):
    """An interpreter runs a graph and notes the values that would be the same for any other images of this size."""

    def __init__(self, body: fx.GraphModule) -> None:
        super().__init__(body)
        self.values: dict[fx.Node, Any] = {}
        self._sizes: set[fx.Node] = set()  # whole sizes, whose first number is that of the images

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if self._is_still(n):
            self.values[n] = value
        return value

    def _is_still(self, node: fx.Node) -> bool:
        if node.op in ("placeholder", "output"):
            return False
        if all(before in self.values for before in node.all_input_nodes):
            return True
        first = node.args[0] if node.args else None
        if not isinstance(first, fx.Node):
            return False
        if (node.op == "call_function" and node.target is getattr and node.args[1] == "shape") or (
            node.op == "call_method" and node.target == "size" and len(node.args) == 1
        ):
            self._sizes.add(node)
            return False
        if node.op == "call_method" and node.target == "size":
            return self._beside_images(node.args[1], self.env[first].ndim)
        if node.op == "call_function" and node.target is operator.getitem and first in self._sizes:
            return self._beside_images(node.args[1], len(self.env[first]))
        return False

    def _beside_images(self, place: Any, n: int) -> bool:
        """Say whether a place among n numbers of a size is none but the first, which counts the images."""
        if isinstance(place, int):
            return place % n != 0
        return (
            isinstance(place, slice)
            and all(isinstance(i, int) for i in range(*place.indices(n)))
            and (0 not in range(*place.indices(n)))
        )
