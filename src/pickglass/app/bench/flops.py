"""Count the operations of a network: those of its convolutions and matrix products, which are nearly all of its work.

A multiplication and an addition are two operations. Letters: M output and C input channels, G groups.
"""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import numpy as np

from pickglass.app.models import AnyModel
from pickglass.runtime.exported import ExportedModel
from pickglass.runtime.session import import_runtime

__all__ = ["gflop_of", "graph_gflop"]

_WEIGHT = {"Conv": 1, "ConvTranspose": 1, "ConvInteger": 1, "QLinearConv": 3}  # which input holds (M, C / G, kernel)
_PRODUCTS = ("MatMul", "Gemm", "MatMulInteger", "QLinearMatMul")


def gflop_of(model: AnyModel) -> float | None:
    """Return the billions of operations that one image takes; None where they cannot be counted.

    A detector's graph is counted as torch runs it; an exported one takes onnx and onnxruntime.
    """
    if isinstance(model, ExportedModel):
        if importlib.util.find_spec("onnx") is None or importlib.util.find_spec("onnxruntime") is None:
            return None
        import onnx

        return graph_gflop(onnx.load(Path(model.source)))
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    device = next(iter(model.state_dict().values())).device
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, *model.input_size, device=device))
    return float(counter.get_total_flops()) / 1e9


def graph_gflop(model: Any) -> float:
    """Return the billions of operations that one image takes in an ONNX graph.

    The graph is run once in onnxruntime with the values as outputs whose sizes count: shape inference does not know
    all of them.

    Args:
        model: a ``ModelProto``, whose outputs are replaced; only the first axis of its inputs may be left open.
    """
    import onnx

    onnxruntime = import_runtime("onnxruntime")
    graph = model.graph
    images = graph.input[0].type.tensor_type.shape.dim[0].dim_value or 1
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    inputs = {}
    for given in graph.input:
        shape = (images, *(dim.dim_value for dim in given.type.tensor_type.shape.dim[1:]))
        inputs[given.name] = np.zeros(shape, onnx.helper.tensor_dtype_to_np_dtype(given.type.tensor_type.elem_type))
        shapes[given.name] = shape
    nodes = [node for node in graph.node if node.op_type in _WEIGHT or node.op_type in _PRODUCTS]
    wanted = dict.fromkeys(name for node in nodes for name in _counted(node) if name not in shapes)
    if wanted:
        del graph.output[:]
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        shapes |= dict(zip(wanted, (value.shape for value in session.run(list(wanted), inputs)), strict=True))
    return sum(_operations(node, *(shapes[name] for name in _counted(node))) for node in nodes) / images / 1e9


def _counted(node: Any) -> tuple[str, str, str]:
    """Return the names of a node's first input, of its weight or second factor, and of its output."""
    weight = _WEIGHT.get(node.op_type, 3 if node.op_type == "QLinearMatMul" else 1)
    return node.input[0], node.input[weight], node.output[0]


def _operations(node: Any, first: tuple[int, ...], weight: tuple[int, ...], output: tuple[int, ...]) -> int:
    if node.op_type in _PRODUCTS:
        turned = any(option.name == "transA" and option.i for option in node.attribute)
        return 2 * math.prod(output) * (first[0] if turned else first[-1])
    cells = first if node.op_type == "ConvTranspose" else output  # each of which meets all but one axis of the weight
    return 2 * math.prod(cells) * math.prod(weight[1:])
