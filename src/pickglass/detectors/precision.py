"""An exported graph comes in another precision: weights and banks stored as float16, or convolutions in int8.

``float16`` halves the file and computes in float32 all the same: CPUs have no fast arithmetic in float16, and runtimes
widen the numbers when they load the file. ``int8`` quantises the convolutions after the training: activations in 8 bits
with ranges that good images showed, as they are and with painted defects, weights in 8 bits with a scale for each
channel, between QuantizeLinear and DequantizeLinear, which onnxruntime and OpenVINO read alike; the rest is stored as
float16. Distances, Gaussians, normalisation and quantiles of maps stay in float32.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from pickglass.data.files import scratch_folder
from pickglass.detectors.onnx_graph import constants, drop_constant, drop_unread
from pickglass.errors import InputError, MissingExtra
from pickglass.nn.search.neighbours import NORM_PARTS
from pickglass.runtime.session import import_runtime

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

__all__ = ["Inputs", "Precision", "check_precision", "halve", "quantised"]

Precision = Literal["float32", "float16", "int8"]

Inputs = Mapping[str, NDArray[Any]]
"""What a file takes, by the name of the input."""

_LEAST = 256  # numbers; smaller tensors stay as they are
_FIRST = 3  # convolutions from the image on that are not quantised
_BETWEEN = ("Add", "Clip", "Relu", "MaxPool", "Pad")
_WEIGHTS = ("Conv", "ConvTranspose", "MatMul", "Gemm")
_CACHED = 2**18  # products of a search that are kept at once: 1 MB, so that their minima are found in a cache
_FEWEST_ROWS = 64  # of a product; fewer cost more than they save
_BANKS = ("Gather", "GatherElements", "GatherND")


def check_precision(precision: str) -> None:
    """Refuse a precision that there is not.

    Raises:
        InputError: with those that there are.
    """
    if precision not in get_args(Precision):
        raise InputError(f"precision={precision!r}: expected one of {', '.join(get_args(Precision))}")


def halve(model: ModelProto) -> None:
    """Store weights and banks as float16, half the bytes; what reads them gets float32 from a Cast.

    What is subtracted (means of Gaussians, normalisation) stays, for there a rounding grows with the size of what it is
    subtracted from; and so does a tensor that float16 cannot hold.
    """
    from onnx import TensorProto, helper, numpy_helper

    readers: dict[str, set[str]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)
    casts: list[NodeProto] = []
    for name, tensor in constants(model):
        if tensor.data_type != TensorProto.FLOAT or not readers.get(name, {""}) <= {*_WEIGHTS, *_BANKS}:
            continue
        values = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            rounded = values.astype(np.float16)
        if values.size < _LEAST or np.abs(rounded - values).max() > np.abs(values).max() / 2048:
            continue
        drop_constant(model, name)
        half = numpy_helper.from_array(rounded, f"{name}/half")
        model.graph.initializer.append(half)
        casts.append(helper.make_node("Cast", [half.name], [name], f"{name}/float", to=TensorProto.FLOAT))
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*casts, *nodes])


def quantised(model: ModelProto, inputs: Iterable[Inputs], search: bool = True) -> tuple[ModelProto, bool]:
    """Return the graph with its convolutions in int8, and whether a memory bank is searched in int8, too.

    Args:
        model: in float32, for a fixed number of images.
        inputs: what the graph takes, of good images and of the same with painted defects; their activations say which
            ranges the numbers have.
        search: search a memory bank in int8, if the model has one.

    Raises:
        InputError: there is no convolution that could be quantised.
        MissingExtra: onnxruntime is not installed.
    """
    try:
        quantization = import_runtime("onnxruntime.quantization")
        helpers = import_runtime("onnxruntime.quantization.quant_utils")
    except ImportError as error:
        raise MissingExtra.needed("precision='int8'", error) from error
    import onnx

    inside = _inside(model)
    if not inside:
        raise InputError(
            "precision='int8' is for convolutions beyond the first three, and this model has none: export it as float16"
        )
    searches = _searches(model) if search else []
    inside += [search.product for search in searches]
    chosen = [node for node in inside if node.op_type != "Pad"]
    helpers.add_pre_process_metadata(model)  # shapes are known and constants folded; otherwise it asks for that
    with scratch_folder() as folder, _temporary_files_in(folder), _quiet():
        wide, path = folder / "float32.onnx", folder / "int8.onnx"
        onnx.save(model, wide)  # given in memory, onnxruntime 1.20 loses its tensors
        quantization.quantize_static(
            wide,
            path,
            _Reader(inputs),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=sorted({node.op_type for node in chosen}),
            nodes_to_quantize=[node.name for node in chosen],
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod.MinMax,
        )
        done = onnx.load(path)
    _leave(done, {node.name for node in inside})
    for found in searches:
        _rounded_bank(done, found)
    del done.graph.value_info[:]
    onnx.checker.check_model(done, full_check=True)
    return done, bool(searches)


class _Reader:
    """The inputs one after the other, as onnxruntime asks for them."""

    def __init__(self, inputs: Iterable[Inputs]) -> None:
        self._inputs = iter(inputs)

    def get_next(self) -> Inputs | None:
        return next(self._inputs, None)


@contextmanager
def _temporary_files_in(folder: Path) -> Iterator[None]:
    """Let the library keep its own files where they are removed after a kill, too; it cannot be told a place."""
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the library logs off the screen; with no handler, its first line would also set up the root logger."""
    root, handler = logging.getLogger(), logging.NullHandler()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)


def _inside(model: ModelProto) -> list[NodeProto]:
    """Return the nodes that are to compute in int8: convolutions, and what lies between them and nothing else.

    The first three from the image on stay in float32, for what they round is amplified by all that follow. So does a
    convolution with one channel: it smooths a map, whose values on defects lie beyond what good images show. Weights
    become initializers, for the library looks for them there.
    """
    tensors = dict(constants(model))
    for node in model.graph.node:
        if node.op_type == "Identity" and node.input[0] in tensors:  # equal tensors are stored once
            tensors[node.output[0]] = tensors[node.input[0]]
    readers: dict[str, list[str]] = {}
    depth: dict[str, int] = {}  # convolutions on the way from the image
    convolutions, passed = [], []
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node.name)
        convolves = node.op_type in ("Conv", "ConvTranspose")
        deep = max((depth.get(name, 0) for name in node.input), default=0) + convolves
        depth.update(dict.fromkeys(node.output, deep))
        if convolves and deep > _FIRST and node.input[1] in tensors and max(tensors[node.input[1]].dims[:2]) > 1:
            convolutions.append(node)
        elif node.op_type in _BETWEEN:
            passed.append(node)
    made = {node.output[0] for node in convolutions}
    after = []
    for node in passed:
        if any(name in made for name in node.input):
            after.append(node)
            made.add(node.output[0])
    names, between = {node.name for node in convolutions}, []
    for node in reversed(after):
        into = [name in names for name in readers.get(node.output[0], [])]
        # the range of int8 clips in place of these three, so where others read them they stay in float32
        if any(into) and (all(into) or node.op_type not in ("Clip", "Relu", "Pad")):
            between.append(node)
            names.add(node.name)
    initializers = {tensor.name for tensor in model.graph.initializer}
    for name in {name for node in convolutions for name in node.input[1:] if name in tensors} - initializers:
        moved = model.graph.initializer.add()
        moved.CopyFrom(tensors[name])
        moved.name = name
        for constant in [node for node in model.graph.node if node.output[0] == name]:
            model.graph.node.remove(constant)
    return [*convolutions, *between]


class _Search(NamedTuple):
    """The product in which a memory bank is searched, and what it is made of.

    Attributes:
        product: the node.
        add: the node that adds the norms to it.
        points: (P, G, C, g), the bank times -2, each channel multiplied by its share of the range.
        norms: (P, G, 1, g), the squared lengths of the points.
    """

    product: NodeProto
    add: NodeProto
    points: NDArray[np.float32]
    norms: NDArray[np.float32]


def _searches(model: ModelProto) -> list[_Search]:
    """Prepare the products in which a memory bank is searched, and return them; see ``nearest_plain``.

    Its norms leave the product and are added to it. Ranges differ from channel to channel, and int8 has one for all:
    each channel is divided on the one side and multiplied on the other by the root of what it reaches in the bank, so
    that half of the difference stays with each (Xiao et al., "SmoothQuant", ICML 2023). Only which point wins is
    decided in int8; the distance to it is measured in float32.
    """
    from onnx import helper, numpy_helper

    tensors = dict(constants(model))
    made = {name: node for node in model.graph.node for name in node.output}
    minima = {node.input[0] for node in model.graph.node if node.op_type == "ReduceMin"}
    found: list[_Search] = []
    for node in [node for node in model.graph.node if node.op_type == "MatMul"]:
        if node.output[0] not in minima or node.input[1] not in tensors:
            continue
        rows = made[node.input[0]]  # (P, N, C + 3) with an axis for the groups
        x = made[rows.input[0]].input[0]  # (P, N, C)
        factors = numpy_helper.to_array(tensors[node.input[1]])  # (P, G, C + 3, g)
        points, norms = factors[..., :-NORM_PARTS, :], factors[..., -NORM_PARTS:, :].sum(-2, keepdims=True)
        reach = np.abs(points).max((0, 1, 3))  # (C,)
        halves = np.sqrt(np.where(reach > 0, reach, 1)).astype(np.float32)
        name, bank = node.name, points * halves[:, None]
        for suffix, array in (("shares", 1 / halves), ("points", bank), ("norms", norms)):
            model.graph.initializer.append(numpy_helper.from_array(array, f"{name}/{suffix}"))
        product = helper.make_node("MatMul", [f"{name}/rows", f"{name}/points"], [f"{name}/product"], name)
        before = [
            helper.make_node("Mul", [x, f"{name}/shares"], [f"{name}/shared"], f"{name}/Mul"),
            helper.make_node(rows.op_type, [f"{name}/shared", *rows.input[1:]], [f"{name}/rows"], f"{name}/Unsqueeze"),
        ]
        add = helper.make_node("Add", [product.output[0], f"{name}/norms"], [node.output[0]], f"{name}/Add")
        at = list(model.graph.node).index(node)
        nodes = [*model.graph.node[:at], *before, product, add, *model.graph.node[at + 1 :]]
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        found.append(_Search(product, add, bank, norms))
    drop_unread(model)
    return found


def _rounded_bank(model: ModelProto, search: _Search) -> None:
    """Store a search's bank in int8, with the norms as further channels, so that a product of whole numbers is all.

    With a scale for each group, as the library gives it, runtimes would compute in float32; and to scale the product,
    or to add to it, takes longer than the product itself. Neither moves a minimum: rows come in units of their step,
    and the bank in units of its own. A norm is written as a sum of numbers of eight bits, each times the largest that a
    row holds, and of what is left, less the middle of all norms. The groups of points, which float32 multiplies one by
    one, become the columns of one matrix. The rows are multiplied part by part: the products of all of them would go to
    the memory and come back for their minima.
    """
    from onnx import helper, numpy_helper

    name, tensors = search.product.name, dict(constants(model))
    made = {output: node for node in model.graph.node for output in node.output}
    product = next(node for node in model.graph.node if node.name == name)
    widen = made[product.input[0]]
    quantise = made[widen.input[0]]
    step, zero = (numpy_helper.to_array(tensors[key]) for key in quantise.input[1:])
    most = 255 - int(zero)  # the largest number that a row holds
    scale = float(np.abs(search.points).max()) / 127
    norms = search.norms.astype(np.float64)
    units = (norms - (norms.max() + norms.min()) / 2) / (float(step) * scale)
    digits = _digits(np.rint(units).astype(np.int64), most)  # (P, G, K, g)
    values = np.concatenate([np.rint(search.points / np.float32(scale)), digits], axis=-2)
    fill = np.zeros((*values.shape[:2], -values.shape[2] % 4, values.shape[3]))  # CPUs multiply four of int8 at once
    values = np.concatenate([values, fill], axis=-2).astype(np.int8)
    places, groups, channels, size = values.shape
    flat = values.transpose(0, 2, 1, 3).reshape(places, channels, groups * size)
    axis = made[quantise.input[0]]  # adds one for the groups to (P, N, C)
    share = made[axis.input[0]]
    n = _shape_of(model, axis.input[0])[1]
    ones = np.full((places, n, channels - search.points.shape[2]), most, np.float32)
    ones[..., digits.shape[2] - 1] = 1
    most_rows = max(_FEWEST_ROWS, _CACHED // (places * groups * size))
    cuts = [len(part) for part in np.array_split(np.arange(n), -(-n // most_rows))]
    stored = {
        "int8": flat[0] if places == 1 else flat,  # a matrix is what runtimes multiply fastest
        "one": np.float32(1),
        "zero": np.int8(0),
        "ones": ones,
        "shares": numpy_helper.to_array(tensors[share.input[1]]) / step,
        "cuts": np.array(cuts),
        "last": np.array([2]),
        **{f"grouped{cut}": np.array([places, cut, groups, size]) for cut in cuts},
    }
    names = {key: f"{name}/bank/{key}" for key in stored}
    for key, value in stored.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), names[key]))
    share.input[1] = names["shares"]
    quantise.input[0], quantise.input[1] = f"{name}/more", names["one"]
    add = next(node for node in model.graph.node if node.name == search.add.name)
    minimum, chosen = (_reader(model, add.output[0], kind) for kind in ("ReduceMin", "GatherElements"))
    winner, squeeze = _reader(model, minimum.output[0], "ArgMin"), _reader(model, chosen.output[0], "Squeeze")
    fresh: list[NodeProto] = []

    def make(op: str, inputs: Sequence[str], outputs: str | Sequence[str], **attributes: Any) -> str:
        named = [f"{name}/{outputs}"] if isinstance(outputs, str) else list(outputs)
        fresh.append(helper.make_node(op, list(inputs), named, named[0], **attributes))
        return named[0]

    bank = make("DequantizeLinear", [names[key] for key in ("int8", "one", "zero")], "bank")
    parts = [quantise.output[0]] if len(cuts) == 1 else [f"{name}/part{i}" for i in range(len(cuts))]
    if len(cuts) > 1:
        make("Split", [quantise.output[0], names["cuts"]], parts, axis=1)
    winners, values_of = [], []
    for i, (part, cut) in enumerate(zip(parts, cuts, strict=True)):
        wide = make("DequantizeLinear", [part, names["one"], *widen.input[2:]], f"rows{i}")
        products = make("MatMul", [wide, bank], f"flat{i}")
        grouped = make("Reshape", [products, names[f"grouped{cut}"]], f"grouped{i}")  # (P, n, G, g)
        least = make("ReduceMin", [grouped], f"least{i}", axes=[3], keepdims=0)
        winners.append(make("ArgMin", [least], f"winner{i}", axis=2, keepdims=1))  # (P, n, 1)
        values_of.append(make("GatherND", [grouped, winners[-1]], f"values{i}", batch_dims=2))  # (P, n, g)
    all_winners = make("Concat", winners, "winners", axis=1)
    make("Squeeze", [all_winners, names["last"]], list(winner.output))
    make("Concat", values_of, list(squeeze.output), axis=1)
    more = helper.make_node("Concat", [share.output[0], names["ones"]], [f"{name}/more"], f"{name}/Concat", axis=-1)
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        if node.name == quantise.name:
            nodes += [more, node, *fresh]
        elif not any(node is old for old in (product, widen, add, minimum, winner, chosen, squeeze)):
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    drop_unread(model)


def _digits(numbers: NDArray[np.int64], base: int) -> NDArray[np.int64]:
    """Write whole numbers (..., 1, n) as ``base`` times the sum of all rows but the last, and the last; (..., K, n).

    All digits are between -127 and 127.
    """
    left = numbers
    rows = []
    for _ in range(-(-int(np.abs(numbers).max()) // (base * 127)) or 1):
        rows.append(np.clip(np.rint(left / base), -127, 127).astype(np.int64))
        left = left - base * rows[-1]
    return np.concatenate([*rows, left], axis=-2)


def _shape_of(model: ModelProto, name: str) -> list[int]:
    from onnx import shape_inference

    graph = shape_inference.infer_shapes(model).graph
    value = next(value for value in graph.value_info if value.name == name)
    return [d.dim_value for d in value.type.tensor_type.shape.dim]


def _reader(model: ModelProto, name: str, kind: str) -> NodeProto:
    found: NodeProto = next(node for node in model.graph.node if node.op_type == kind and node.input[0] == name)
    return found


def _leave(model: ModelProto, inside: set[str]) -> None:
    """Give what lies outside the numbers as they are before they are quantised, and drop what nobody reads then.

    Left to read quantised ones, OpenVINO carries int8 on into distances, whose values are then wrong.
    """
    made = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.name in inside or node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue
        for i, name in enumerate(node.input):
            wide = made.get(name)
            narrow = made.get(wide.input[0]) if wide is not None and wide.op_type == "DequantizeLinear" else None
            if narrow is not None and narrow.op_type == "QuantizeLinear":
                node.input[i] = narrow.input[0]
    drop_unread(model)
