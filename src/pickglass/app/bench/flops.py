"""Count the operations of a network: those of its convolutions and matrix products, which are nearly all of its work.

A multiplication and an addition are two operations. Letters: M output and C input channels, G groups.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pickglass.app.models import AnyModel
from pickglass.runtime.exported import ExportedModel

__all__ = ["gflop_of", "graph_gflop"]

_WEIGHT = {"Conv": 1, "ConvTranspose": 1, "ConvInteger": 1, "QLinearConv": 3}  # which input holds (M, C / G, kernel)
_PRODUCTS = ("MatMul", "Gemm", "MatMulInteger", "QLinearMatMul")


def gflop_of(model: AnyModel) -> float | None:
    """Return the billions of operations that one image takes; None where they cannot be counted.

    A detector's graph is counted as torch runs it; an exported one is read with onnx, and not counted without that.
    """
    if isinstance(model, ExportedModel):
        if importlib.util.find_spec("onnx") is None:
            return None
        import onnx

        return graph_gflop(onnx.load(Path(model.source)))
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    device = next(iter(model.state_dict().values())).device
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, *model.input_size, device=device))
    return float(counter.get_total_flops()) / 1e9


def graph_gflop(model: Any) -> float | None:
    """Return the billions of operations that one image takes in an ONNX graph; None where a size is not known.

    Args:
        model: a ``ModelProto``; it is changed to one image at a time.
    """
    import onnx

    images = 1
    for given in model.graph.input:
        first = given.type.tensor_type.shape.dim[0]
        images = first.dim_value or 1
        first.dim_value = images
    for given in model.graph.output:
        given.type.tensor_type.ClearField("shape")
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {value.name: _shape(value) for value in (*graph.value_info, *graph.input, *graph.output)}
    shapes |= {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    operations = 0
    for node in graph.node:
        if node.op_type in _WEIGHT or node.op_type in _PRODUCTS:
            n = _operations(node, [shapes.get(name) for name in node.input], shapes.get(node.output[0]))
            if n is None:
                return None
            operations += n
    return operations / images / 1e9


def _shape(value: Any) -> list[int] | None:
    dims = value.type.tensor_type.shape.dim
    return [dim.dim_value for dim in dims] if all(dim.HasField("dim_value") for dim in dims) else None


def _operations(node: Any, inputs: Sequence[Sequence[int] | None], output: Sequence[int] | None) -> int | None:
    first = inputs[0]
    if first is None or output is None:
        return None
    if node.op_type in _PRODUCTS:
        turned = any(option.name == "transA" and option.i for option in node.attribute)
        return 2 * math.prod(output) * (first[0] if turned else first[-1])
    weight = inputs[_WEIGHT[node.op_type]]
    if weight is None:
        return None
    cells = first if node.op_type == "ConvTranspose" else output  # each of which meets all but one axis of the weight
    return 2 * math.prod(cells) * math.prod(weight[1:])
