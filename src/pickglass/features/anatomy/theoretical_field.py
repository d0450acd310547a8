"""The theoretical receptive field of a layer is the side of the pixels that its centre cell depends on by the graph.

From the cell backwards, each operation turns the rows and columns of its output that are asked for into those of its
inputs that it reads; where paths meet, the union counts. Nothing is cut at the border, and a window of one pixel counts
whatever its weight, so this is an upper bound of every other field. An operation that reads the whole map, as
squeeze-excitation and attention do, makes the field global.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

from torch import fx, nn

__all__ = ["Shape", "theoretical_field"]

Shape = tuple[int, ...]
Span = tuple[int, int]  # first and last cell, both included


class _Demand(NamedTuple):
    """A demand asks a tensor for a span of cells along each of two axes (rows, columns)."""

    axes: tuple[int, int]
    spans: tuple[Span, Span]


class _Everything(Exception):
    """An operation reads the whole map, so the field is global."""


def theoretical_field(
    graph: fx.GraphModule, shapes: dict[str, Shape | list[Shape]], node: fx.Node
) -> int | Literal["global"] | None:
    """Compute the longer side of the theoretical receptive field, in pixels.

    Args:
        graph: the network.
        shapes: name of each node that gives a tensor (or several) -> shape, from a run on one image.
        node: gives maps (1, C, h, w), or tokens (1, N, C).

    Returns:
        Pixels; ``"global"`` where every pixel is read; None where an operation is not understood.
    """
    shape = shapes[node.name]
    demands: dict[str, _Demand | None] = {node.name: None}  # None: something of it, but where is not known
    if isinstance(shape, tuple) and len(shape) == 4:
        demands[node.name] = _Demand((2, 3), ((shape[2] // 2,) * 2, (shape[3] // 2,) * 2))
    walk = _Walk(graph, shapes)
    try:
        for current in reversed(list(graph.graph.nodes)):
            if current.name not in demands:
                continue
            demand = demands[current.name]
            if current.op == "placeholder":
                return None if demand is None else max(last - first + 1 for first, last in demand.spans)
            for source, wanted in walk.sources(current, demand):
                before = demands.get(source.name, wanted)
                demands[source.name] = _union(before, wanted) if source.name in demands else wanted
    except _Everything:
        return "global"
    return None


def _union(a: _Demand | None, b: _Demand | None) -> _Demand | None:
    if a is None or b is None or a.axes != b.axes:
        return None
    spans = [(min(p[0], q[0]), max(p[1], q[1])) for p, q in zip(a.spans, b.spans, strict=True)]
    return _Demand(a.axes, (spans[0], spans[1]))


class _Window(NamedTuple):
    """A window slides along one axis."""

    kernel: int
    stride: int
    padding: int  # before the first cell
    dilation: int = 1

    def read(self, span: Span) -> Span:
        first = span[0] * self.stride - self.padding
        last = span[1] * self.stride - self.padding + self.dilation * (self.kernel - 1)
        return first, last


# Each value of the output depends on the value at the same place, once the shapes are brought in line.
_POINTWISE = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd, nn.Identity)
_POINTWISE_NAMES = {
    # norms with fixed statistics or over channels, and dropout
    *("FrozenBatchNorm2d", "LayerNorm2d", "batch_norm", "DropPath", "StochasticDepth", "DropBlock2d"),
    *("dropout", "dropout_", "dropout2d", "dropout3d", "stochastic_depth", "drop_path"),
    # copies
    *("contiguous", "clone", "to", "float", "type_as", "detach"),
    # arithmetic
    *("add", "add_", "iadd", "sub", "isub", "mul", "mul_", "imul", "truediv", "div", "neg", "pow", "abs", "exp"),
    *("log", "sqrt", "rsqrt", "maximum", "minimum", "where", "clamp"),
    # activations
    *("relu", "relu_", "relu6", "hardtanh", "silu", "hardswish", "hardsigmoid", "sigmoid", "sigmoid_", "gelu", "elu"),
    *("leaky_relu", "mish", "tanh", "softplus", "prelu"),
}
_WHOLE = {"group_norm", "instance_norm"}  # every cell enters the statistics
_REDUCING = {"mean", "sum", "amax", "amin", "max", "min", "var", "std", "logsumexp"}
_ATTENTION = {"scaled_dot_product_attention", "multi_head_attention_forward"}
_PRODUCTS = {"matmul", "bmm", "baddbmm", "einsum"}
_RESHAPING = {"reshape", "view", "flatten", "unflatten", "unsqueeze", "squeeze", "expand"}


class _Walk:
    """The walk knows, for each operation, what it asks of its inputs when something is asked of its output.

    Each rule returns a demand; None where it is not understood which cells are read. It raises where all are.
    """

    def __init__(self, graph: fx.GraphModule, shapes: dict[str, Shape | list[Shape]]) -> None:
        self.graph = graph
        self.shapes = shapes

    def sources(self, node: fx.Node, demand: _Demand | None) -> Iterator[tuple[fx.Node, _Demand | None]]:
        """Yield each input that holds tensors of the image, and what is asked of it."""
        inputs = [n for n in node.all_input_nodes if n.op != "get_attr" and n.name in self.shapes]
        if node.op == "call_module":
            module = self.graph.get_submodule(str(node.target))
            asked = [self._module(module, node, source, demand) for source in inputs]
        elif node.op in ("call_function", "call_method"):
            name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
            asked = [self._function(name, node, source, demand) for source in inputs]
        else:
            return
        yield from zip(inputs, asked, strict=True)

    # -- modules -------------------------------------------------------------------------------------------------------

    def _module(self, module: nn.Module, node: fx.Node, source: fx.Node, demand: _Demand | None) -> _Demand | None:
        name = type(module).__name__
        if isinstance(module, (nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)) or name == "SqueezeExcitation":
            raise _Everything
        if isinstance(module, nn.Sequential):  # one that the tracer keeps whole, such as convolution, norm, activation
            for part in reversed(list(module.children())):
                demand = self._module(part, node, source, demand)
            return demand
        if isinstance(module, (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)):
            return self._adaptive(node, source, demand)
        if isinstance(module, nn.MultiheadAttention):
            self._attention(source)
            return None
        if demand is None:
            return None
        if isinstance(module, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)):
            dilation = _pair(getattr(module, "dilation", 1))
            padding: Any = module.padding
            kernel, stride = _pair(module.kernel_size), _pair(module.stride)
            if name.endswith("Same"):  # as in TensorFlow: depends on the size of the input
                padding = "tensorflow"
            return self._slide(kernel, stride, padding, dilation, source, demand)
        if isinstance(module, nn.ConvTranspose2d):
            return self._transposed(module, demand)
        if isinstance(module, nn.Upsample):
            return self._interpolated(node, source, demand, module.mode, bool(module.align_corners))
        if isinstance(module, (nn.ZeroPad2d, nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d)):
            return self._padded(demand, tuple(module.padding), 4)
        if isinstance(module, nn.LayerNorm) and name != "LayerNorm2d":  # which is over channels
            return self._over_last(node, demand, len(module.normalized_shape))
        if isinstance(module, nn.Linear):
            return self._over_last(node, demand, 1)
        if name == "Permute":
            dims: Any = module.dims
            return self._permuted("permute", (dims,), source, demand)
        activation = type(module).__module__ == "torch.nn.modules.activation" and not name.startswith("Softmax")
        return demand if activation or isinstance(module, _POINTWISE) or name in _POINTWISE_NAMES else None

    # -- functions and methods -----------------------------------------------------------------------------------------

    def _function(self, name: str, node: fx.Node, source: fx.Node, demand: _Demand | None) -> _Demand | None:
        arguments, named = node.args, node.kwargs
        if name in _WHOLE:
            raise _Everything
        several = len([n for n in node.all_input_nodes if n.op != "get_attr"]) > 1
        if name in _ATTENTION or (name in _PRODUCTS and several):
            self._attention(source)
            return None
        if name.startswith("adaptive_"):
            return self._adaptive(node, source, demand)
        if name in _REDUCING:
            return self._reduced(node, source, demand)
        if demand is None:
            return None
        if name in _POINTWISE_NAMES:
            return self._broadcast(node, source, demand)
        if name in ("cat", "chunk", "split", "concat", "tensor_split", "unbind"):
            place = 2 if name in ("chunk", "split", "tensor_split") else 1
            dim = named.get("dim", arguments[place] if len(arguments) > place else 0)
            return None if int(dim) % len(self._shape(source)) in demand.axes else demand  # type: ignore[arg-type]
        if name == "getitem":
            return self._item(source, arguments[1], demand)
        if name in _RESHAPING:
            return self._reshaped(node, source, demand)
        if name in ("permute", "transpose"):
            return self._permuted(name, arguments[1:] or tuple(named.values()), source, demand)
        if name == "layer_norm":
            normalised: Any = arguments[1] if len(arguments) > 1 else named["normalized_shape"]
            return self._over_last(node, demand, len(normalised))
        if name == "linear":
            return self._over_last(node, demand, 1)
        if name == "pad":
            pads: Any = arguments[1] if len(arguments) > 1 else named["pad"]
            return self._padded(demand, pads, len(self._shape(node)))
        if name in ("interpolate", "upsample"):
            mode = str(named.get("mode", arguments[3] if len(arguments) > 3 else "nearest"))
            return self._interpolated(node, source, demand, mode, bool(named.get("align_corners")))
        if name in ("conv2d", "max_pool2d", "avg_pool2d"):
            return self._functional_window(name, node, source, demand)
        return None

    def _functional_window(self, name: str, node: fx.Node, source: fx.Node, demand: _Demand) -> _Demand | None:
        order = ["input", "weight", "bias", "stride", "padding", "dilation"]
        if name != "conv2d":
            order = ["input", "kernel_size", "stride", "padding", "dilation" if name == "max_pool2d" else "ceil_mode"]
        given: dict[str, Any] = {**dict(zip(order, node.args, strict=False)), **node.kwargs}
        kernel = self.shapes[given["weight"].name][2:] if name == "conv2d" else _pair(given["kernel_size"])
        stride = given.get("stride", 1 if name == "conv2d" else None)
        return self._slide(
            (int(kernel[0]), int(kernel[1])),  # type: ignore[arg-type]
            _pair(kernel if stride is None or stride == [] else stride),
            given.get("padding", 0),
            _pair(given.get("dilation", 1)),
            source,
            demand,
        )

    # -- one kind of operation each ------------------------------------------------------------------------------------

    def _shape(self, node: fx.Node) -> Shape:
        shape = self.shapes[node.name]
        return shape if isinstance(shape, tuple) else shape[0]

    def _slide(
        self, kernel: Span, stride: Span, padding: Any, dilation: Span, source: fx.Node, demand: _Demand
    ) -> _Demand:
        sides = [self._shape(source)[axis] for axis in demand.axes]
        spans = []
        for i, span in enumerate(demand.spans):
            reach = dilation[i] * (kernel[i] - 1)
            if padding == "tensorflow":
                before = max((math.ceil(sides[i] / stride[i]) - 1) * stride[i] + reach + 1 - sides[i], 0) // 2
            elif isinstance(padding, str):
                before = reach // 2 if padding == "same" else 0
            else:
                before = _pair(padding)[i]
            spans.append(_Window(kernel[i], stride[i], before, dilation[i]).read(span))
        return _Demand(demand.axes, (spans[0], spans[1]))

    def _transposed(self, module: nn.ConvTranspose2d, demand: _Demand) -> _Demand:
        spans = []
        for i, (first, last) in enumerate(demand.spans):
            stride, padding = module.stride[i], int(module.padding[i])
            reach = module.dilation[i] * (module.kernel_size[i] - 1)
            spans.append((math.ceil((first + padding - reach) / stride), (last + padding) // stride))
        return _Demand(demand.axes, (spans[0], spans[1]))

    def _interpolated(
        self, node: fx.Node, source: fx.Node, demand: _Demand, mode: str, corners: bool
    ) -> _Demand | None:
        reach = {"nearest": (0, 0), "nearest-exact": (0, 0), "bilinear": (0, 1), "bicubic": (-1, 2)}.get(mode)
        if reach is None:
            return None
        spans = []
        for axis, span in zip(demand.axes, demand.spans, strict=True):
            new, old = self._shape(node)[axis], self._shape(source)[axis]
            places = []
            for cell in span:
                if mode == "nearest":
                    place = cell * old / new
                elif corners:
                    place = cell * (old - 1) / max(new - 1, 1)
                else:
                    place = (cell + 0.5) * old / new - (0.0 if mode == "nearest-exact" else 0.5)
                places.append(place)
            last = math.floor(places[1])
            # on a cell of the input exactly, its neighbour has no share
            spans.append((math.floor(places[0]) + reach[0], last + (reach[1] if places[1] != last else 0)))
        return _Demand(demand.axes, (spans[0], spans[1]))

    def _padded(self, demand: _Demand, pads: Sequence[Any], dimensions: int) -> _Demand | None:
        if not all(isinstance(pad, int) for pad in pads):
            return None
        spans = []
        for axis, (first, last) in zip(demand.axes, demand.spans, strict=True):
            place = 2 * (dimensions - 1 - axis)  # pairs from the last axis on
            before = pads[place] if place < len(pads) else 0
            spans.append((first - before, last - before))
        return _Demand(demand.axes, (spans[0], spans[1]))

    def _broadcast(self, node: fx.Node, source: fx.Node, demand: _Demand) -> _Demand | None:
        out, into = self._shape(node), self._shape(source)
        shift = len(out) - len(into)
        axes, spans = [], []
        for axis, span in zip(demand.axes, demand.spans, strict=True):
            if axis < shift:
                return None
            stretched = into[axis - shift] == 1 and out[axis] > 1
            axes.append(axis - shift)
            spans.append((0, 0) if stretched else span)
        return _Demand((axes[0], axes[1]), (spans[0], spans[1]))

    def _over_last(self, node: fx.Node, demand: _Demand, count: int) -> _Demand:
        if max(demand.axes) >= len(self._shape(node)) - count:
            raise _Everything
        return demand

    def _adaptive(self, node: fx.Node, source: fx.Node, demand: _Demand | None) -> _Demand | None:
        if self._shape(node)[-2:] == (1, 1):
            raise _Everything
        if demand is None:
            return None
        spans = []
        for axis, (first, last) in zip(demand.axes, demand.spans, strict=True):
            new, old = self._shape(node)[axis], self._shape(source)[axis]
            spans.append((first * old // new, math.ceil((last + 1) * old / new) - 1))
        return _Demand(demand.axes, (spans[0], spans[1]))

    def _reduced(self, node: fx.Node, source: fx.Node, demand: _Demand | None) -> _Demand | None:
        into = self._shape(source)
        given: Any = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else tuple(range(len(into))))
        dims = {int(d) % len(into) for d in (given if isinstance(given, (tuple, list)) else (given,))}
        if demand is None:
            if len(into) == 4 and len(dims) >= 2:
                raise _Everything
            return None
        if dims & set(demand.axes):
            raise _Everything
        return demand if len(self._shape(node)) == len(into) else None

    def _attention(self, source: fx.Node) -> None:
        """Attention reads all tokens of the one image; windows of it would lie along the first axis."""
        if self._shape(source)[0] == 1:
            raise _Everything

    def _item(self, source: fx.Node, index: Any, demand: _Demand) -> _Demand | None:
        if isinstance(self.shapes[source.name], list):
            return demand  # one of several tensors
        index = index if isinstance(index, tuple) else (index,)
        if Ellipsis in index:
            at = index.index(Ellipsis)
            rest = len(self._shape(source)) - (len(index) - 1)
            index = (*index[:at], *([slice(None)] * rest), *index[at + 1 :])
        if not all(isinstance(part, slice) for part in index):
            return None
        spans = list(demand.spans)
        for i, axis in enumerate(demand.axes):
            part = index[axis] if axis < len(index) else slice(None)
            start, step = part.start or 0, part.step or 1
            if not isinstance(start, int) or start < 0 or not isinstance(step, int):
                return None
            spans[i] = (start + spans[i][0] * step, start + spans[i][1] * step)
        return _Demand(demand.axes, (spans[0], spans[1]))

    def _permuted(self, name: str, order: Any, source: fx.Node, demand: _Demand) -> _Demand:
        count = len(self._shape(source))
        flat = [int(d) % count for part in order for d in (part if isinstance(part, (tuple, list)) else (part,))]
        if name == "transpose":
            swapped = list(range(count))
            swapped[flat[0]], swapped[flat[1]] = flat[1], flat[0]
            flat = swapped
        return _Demand((flat[demand.axes[0]], flat[demand.axes[1]]), demand.spans)

    def _reshaped(self, node: fx.Node, source: fx.Node, demand: _Demand) -> _Demand | None:
        """An axis survives where its size and the number of values before it stay the same."""
        out, into = self._shape(node), self._shape(source)
        if math.prod(out) != math.prod(into):
            return self._broadcast(node, source, demand)
        axes = []
        for axis in demand.axes:
            before = math.prod(out[:axis])
            same = [a for a, side in enumerate(into) if side == out[axis] > 1 and math.prod(into[:a]) == before]
            if not same:
                return None
            axes.append(same[0])
        return _Demand((axes[0], axes[1]), demand.spans)


def _pair(value: Any) -> tuple[int, int]:
    both = value if isinstance(value, (tuple, list)) else (value, value)
    return int(both[0]), int(both[-1])
