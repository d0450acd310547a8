"""An exported graph comes in another precision: weights and banks stored as float16, or convolutions in int8.

``float16`` halves the file and computes in float32 all the same: CPUs have no fast arithmetic in float16, and runtimes
widen the numbers when they load the file. ``int8`` quantises the convolutions after the training: activations in 8 bits
with ranges that good images showed, weights in 8 bits with a scale for each channel, between QuantizeLinear and
DequantizeLinear, which onnxruntime and OpenVINO read alike; the rest is stored as float16. Distances, Gaussians,
normalisation and quantiles of maps stay in float32.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pickglass.data.files import scratch_folder
from pickglass.detectors.onnx_graph import constants, drop_constant, drop_unread
from pickglass.errors import InputError, MissingExtra
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


def quantised(model: ModelProto, inputs: Iterable[Inputs]) -> ModelProto:
    """Return the graph with its convolutions in int8.

    Args:
        model: in float32, for a fixed number of images.
        inputs: what the graph takes, of good images; their activations say which ranges the numbers have.

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
    chosen = [node for node in inside if node.op_type != "Pad"]
    if not chosen:
        raise InputError(
            "precision='int8' is for convolutions beyond the first three, and this model has none: export it as float16"
        )
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
    del done.graph.value_info[:]
    onnx.checker.check_model(done, full_check=True)
    return done


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
