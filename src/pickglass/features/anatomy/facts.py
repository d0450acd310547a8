"""The layers of a network have a grid, a stride, channels, a cost and a theoretical receptive field.

The graph is run once, node by node, and each node's shape and multiply-adds are noted; the weights do not matter.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, fx
from torch.utils.flop_counter import FlopCounterMode

from pickglass.features.anatomy.theoretical_field import Shape, theoretical_field
from pickglass.features.extractor import FeatureExtractor

__all__ = ["LayerFacts", "layer_facts", "needed"]


class LayerFacts(NamedTuple):
    """The facts about one layer, for one size of the input.

    Attributes:
        layer: name as the user writes it.
        node: name of the node of the graph.
        channels: number of channels of its maps.
        grid: number of cells (h, w).
        stride: pixels of the input a cell (rows, columns).
        macs: multiply-adds an image, from the pixels to this layer.
        theoretical: side of the theoretical receptive field in pixels; see
            :mod:`pickglass.features.anatomy.theoretical_field`.
    """

    layer: str
    node: str
    channels: int
    grid: tuple[int, int]
    stride: tuple[int, int]
    macs: int
    theoretical: int | Literal["global"] | None


def layer_facts(extractor: FeatureExtractor, size: tuple[int, int]) -> list[LayerFacts]:
    """Collect the facts about each layer of an extractor for images of ``size`` (H, W), in the order of its layers.

    Raises:
        InputError: a layer gives no map, or the image is too small or no multiple of the patches.
    """
    body = extractor.body
    if not isinstance(body, fx.GraphModule):
        raise TypeError(f"the body is {type(body).__name__}, expected the graph that torchvision cuts")
    record = _Record(body)
    try:
        with torch.no_grad(), record.counter:
            outputs = record.run(torch.zeros(1, 3, *size, device=extractor.mean.device))
        levels = extractor.arranged(outputs, size)
        shapes = [(level.shape[1], level.shape[2], level.shape[3]) for level in levels]
    except Exception:
        extractor.shapes(size)  # says what is wrong
        raise
    (output,) = (node for node in body.graph.nodes if node.op == "output")
    facts = []
    for layer, name, (channels, h, w) in zip(extractor.layers, extractor.nodes, shapes, strict=True):
        node = output.args[0][name]
        facts.append(
            LayerFacts(
                layer,
                name,
                channels,
                (h, w),
                (round(size[0] / h), round(size[1] / w)),
                sum(record.macs[n.name] for n in needed(node)),
                theoretical_field(body, record.shapes, node),
            )
        )
    return facts


class _Record(fx.Interpreter):
    """An interpreter that runs a graph and notes what each node gives and costs."""

    def __init__(self, body: fx.GraphModule) -> None:
        super().__init__(body)
        self.counter = FlopCounterMode(display=False)
        self.shapes: dict[str, Shape | list[Shape]] = {}
        self.macs: dict[str, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        before = self.counter.get_total_flops()
        output = super().run_node(n)
        self.macs[n.name] = (self.counter.get_total_flops() - before) // 2
        if isinstance(output, Tensor):
            self.shapes[n.name] = tuple(output.shape)
        elif isinstance(output, (tuple, list)) and output and all(isinstance(part, Tensor) for part in output):
            self.shapes[n.name] = [tuple(part.shape) for part in output]
        return output


def needed(node: fx.Node) -> set[fx.Node]:
    """Collect a node of a graph and all that it depends on."""
    nodes: set[fx.Node] = set()
    waiting = [node]
    while waiting:
        current = waiting.pop()
        if current not in nodes:
            nodes.add(current)
            waiting.extend(current.all_input_nodes)
    return nodes
