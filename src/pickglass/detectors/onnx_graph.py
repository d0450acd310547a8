"""The whole graph of a detector as ONNX: from images to scores and maps, with normalisation, tiles and regions.

The graph is traced with a fixed number of images, so that every size in it is a number and nothing has to be computed
from shapes. For an open number of images it is traced twice, with two and with three: the numbers that differ are those
in which the number of images enters. In a Reshape such a number becomes -1; elsewhere it is computed from the input.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pickglass.detectors.method import Method
from pickglass.errors import InputError, MissingExtra
from pickglass.features.engine import to_onnx

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

__all__ = [
    "OPSET",
    "InputForm",
    "MapForm",
    "constants",
    "drop_constant",
    "drop_unread",
    "forward_as",
    "has_features",
    "needs_keep",
    "onnx_graph",
]

InputForm = Literal["float32", "uint8"]
MapForm = Literal["grid", "full"]

OPSET = 16
"""Version of ONNX's operations that exported graphs use; later ones have some that older TensorRT lacks."""

_TRACED = (2, 3)  # images
_MOST_BYTES = 2**31 - 2**26  # a file of ONNX holds less than 2 GiB; the rest is for the graph itself
_BATCH = "pickglass/batch"
_OPAQUE = ("If", "Loop", "Scan")  # they have graphs of their own


def forward_as(
    detector: Method, input_form: InputForm, map_form: MapForm, images: Tensor, keep: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Compute the outputs with the input and the map in the wanted form, as :func:`onnx_graph` exports them."""
    if input_form == "uint8":
        images = images.permute(0, 3, 1, 2).float() / 255  # (B, 3, H, W)
    scores, maps, *features = detector(images, keep, has_features(detector))
    if map_form == "full":  # as pickglass.data.resize_map
        size = (int(images.shape[2]), int(images.shape[3]))
        maps = F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    return scores, maps, *features


class _Exported(nn.Module):
    """The detector with its input and its map in the wanted form."""

    def __init__(self, detector: Method, input_form: InputForm, map_form: MapForm) -> None:
        super().__init__()
        self.detector = detector
        self.input_form = input_form
        self.map_form = map_form

    def forward(self, images: Tensor, keep: Tensor | None = None) -> tuple[Tensor, ...]:
        return forward_as(self.detector, self.input_form, self.map_form, images, keep)


def has_features(detector: Method) -> bool:
    """Say whether the graph computes what drift compares: the model keeps a sample, and its method reads features."""
    return detector.reference is not None and detector.reference.features.shape[1] > 0


def needs_keep(detector: Method) -> bool:
    """Say whether an image itself decides which pixels of the canvas count.

    It does where it may leave a part of the canvas empty, and where it has a region of interest of its own.
    """
    regions = detector.provenance.regions
    return detector.preprocess.geometry != "squeeze" or regions.margins or regions.regions in ("each", "some")


def onnx_graph(
    detector: Method, batch: int | None, input_form: InputForm, map_form: MapForm, keep: bool = False
) -> ModelProto:
    """Return the graph: input ``image``, outputs ``score`` (B,) and ``map`` (B, h, w), in float32.

    Where :func:`needs_keep` says so, there is a second input ``keep``, (B, H, W) bool: what of the canvas counts. Where
    :func:`has_features` says so, there is a third output ``features``, (B, d): each channel, averaged over the cells.

    Args:
        detector: fitted; it stays as it is.
        batch: how many images the graph takes at once; None: any number.
        input_form: ``"float32"``, (B, 3, H, W) RGB in [0, 1], or ``"uint8"``, (B, H, W, 3) RGB in 0..255.
        map_form: ``"grid"``, the map on the model's grid, or ``"full"``, enlarged to the canvas (H, W), bilinear with
            half-pixel centres.
        keep: have the input ``keep`` in any case.

    Raises:
        NotFitted: there is nothing to export yet.
        InputError: the model is larger than an ONNX file can be, or cannot be exported with an open number of images.
        MissingExtra: onnx is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise MissingExtra.needed("export", error) from error

    if batch is not None and batch < 1:
        raise InputError(f"batch={batch!r}: expected a number of images from 1 on, or None for any number")
    detector.network  # noqa: B018  (an unfitted detector says so)
    size = sum(tensor.numel() * tensor.element_size() for tensor in detector.state_dict().values())
    if size > _MOST_BYTES:
        raise InputError(
            f"the model's tensors take {size / 1e9:.1f} GB, and a file of ONNX holds 2 GB: fit a smaller model, e.g. "
            "fewer tiles, heads that are shared or a smaller bank"
        )
    own = copy.deepcopy(detector).to("cpu").eval()
    own.extractor = own.network.for_size(own.seen_size)
    network = _Exported(own, input_form, map_form).eval()
    names = ["image", "keep"] if keep or needs_keep(detector) else ["image"]
    outputs = ["score", "map", "features"] if has_features(detector) else ["score", "map"]

    def traced(n: int) -> ModelProto:
        h, w = own.input_size
        shape, dtype = ((n, h, w, 3), torch.uint8) if input_form == "uint8" else ((n, 3, h, w), torch.float32)
        with torch.no_grad():
            example = [torch.full(shape, 1, dtype=dtype), torch.ones(n, h, w, dtype=torch.bool)][: len(names)]
            try:
                content = to_onnx(network, example, names, output_names=outputs, opset_version=OPSET)
            except torch.onnx.errors.OnnxExporterError as error:
                why = str(error).splitlines()[0][:200]
                raise InputError(
                    f"{detector.method} with {detector.backbone} cannot be exported at an input of {h}x{w} pixels "
                    f"({why}): take another backbone"
                ) from error
        model, nodes = onnx.load_from_string(content), 0
        while nodes != len(model.graph.node):  # sizes that are known now make others known
            nodes = len(model.graph.node)
            model = _folded(model)
        _pad_in_convolutions(model)
        return model

    model = traced(batch) if batch is not None else _opened(*(traced(n) for n in _TRACED))
    del model.graph.value_info[:]
    onnx.checker.check_model(model, full_check=True)
    return model


# -- constants ---------------------------------------------------------------------------------------------------------


def _folded(model: ModelProto) -> ModelProto:
    """Compute what does not depend on the images, and the sizes, which are all known; drop what nobody reads then."""
    from onnx import numpy_helper, shape_inference
    from onnx.helper import make_graph, make_model, make_tensor_value_info
    from onnx.reference import ReferenceEvaluator

    graph = shape_inference.infer_shapes(model, data_prop=True).graph
    sizes = {
        value.name: [d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.value_info)
        if value.type.tensor_type.HasField("shape")
    }
    known: dict[str, Any] = dict(constants(model))
    nodes = list(model.graph.node)
    for i, node in enumerate(nodes):
        if node.op_type in ("Constant", "Identity", *_OPAQUE) or len(node.output) != 1:
            continue
        if node.op_type == "Shape" and min(sizes.get(node.input[0], [0]), default=1) > 0 and not node.attribute:
            value = np.array(sizes[node.input[0]], np.int64)
        elif all(name in known for name in node.input if name) and any(node.input):
            given: dict[str, np.ndarray] = {name: numpy_helper.to_array(known[name]) for name in node.input if name}
            declared = [make_tensor_value_info(key, known[key].data_type, a.shape) for key, a in given.items()]
            result = make_tensor_value_info(node.output[0], 0, None)
            alone = make_model(make_graph([node], "one", declared, [result]), opset_imports=model.opset_import)
            answer: Any = ReferenceEvaluator(alone).run(None, given)
            value = np.asarray(answer[0])
        else:
            continue
        nodes[i] = _constant(node.output[0], value)
        known[node.output[0]] = nodes[i].attribute[0].t
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    drop_unread(model)
    return model


def _pad_in_convolutions(model: ModelProto) -> None:
    """Give convolutions the zeros around their input as an attribute, which saves each runtime a copy of the input."""
    from onnx import helper, numpy_helper

    known = {name: numpy_helper.to_array(tensor) for name, tensor in constants(model)}
    pads = {node.output[0]: node for node in model.graph.node if node.op_type == "Pad"}
    for node in model.graph.node:
        pad = pads.get(node.input[0]) if node.op_type == "Conv" else None
        if pad is None or pad.input[1] not in known or not _is_zeros(pad, known):
            continue
        around = known[pad.input[1]].reshape(2, -1)  # before and after, along each axis
        own = next((a for a in node.attribute if a.name == "pads"), helper.make_attribute("pads", [0] * 2 * 2))
        if around[:, :2].any() or around.min() < 0 or around.shape[1] != 4 or len(own.ints) != 4:
            continue
        kept = [a for a in node.attribute if a.name != "pads"]
        del node.attribute[:]
        both = (around[:, 2:] + np.array(own.ints).reshape(2, 2)).reshape(-1)
        node.attribute.extend([*kept, helper.make_attribute("pads", both.tolist())])
        node.input[0] = pad.input[0]
    drop_unread(model)


def _is_zeros(pad: NodeProto, known: dict[str, np.ndarray]) -> bool:
    """Say whether a Pad adds zeros on all axes."""
    mode = next((a.s for a in pad.attribute if a.name == "mode"), b"constant")
    value, axes = ([*pad.input, "", ""][i] for i in (2, 3))
    return mode == b"constant" and not axes and (not value or (value in known and not known[value].any()))


# -- an open number of images ------------------------------------------------------------------------------------------


class _NotOpen(InputError):
    def __init__(self, why: str) -> None:
        super().__init__(
            f"this detector cannot be exported with an open number of images ({why[:150]}): export it with a fixed "
            "one, e.g. batch=1"
        )


def _opened(two: ModelProto, three: ModelProto) -> ModelProto:
    """Make one graph for any number of images of those for two and for three."""
    from onnx import helper, numpy_helper

    nodes = two.graph.node
    if [_kind(node) for node in nodes] != [_kind(node) for node in three.graph.node]:
        raise _NotOpen("the graph depends on it")
    computed: list[NodeProto] = []  # go first
    for mine, other in zip(constants(two), constants(three), strict=True):
        name, a = mine[0], numpy_helper.to_array(mine[1])
        b = numpy_helper.to_array(other[1])
        if a.shape == b.shape and a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f"):
            continue
        readers = [(node.op_type, list(node.input).index(name)) for node in nodes if name in node.input]
        if a.shape == b.shape and a.ndim <= 1 and a.dtype == np.int64:
            factors = _factors(a, b, name)
            if all(reader == ("Reshape", 1) for reader in readers) and np.count_nonzero(factors) == 1 and -1 not in a:
                changed = np.where(factors > 0, -1, a)
                mine[1].CopyFrom(numpy_helper.from_array(changed.astype(np.int64), mine[1].name))
                continue
            computed += _times_batch(name, a, factors)
        else:
            computed += _repeated(name, a, b)
        drop_constant(two, name)
    if computed:
        image = two.graph.input[0].name
        computed[:0] = [
            helper.make_node("Shape", [image], [f"{_BATCH}/shape"]),
            _constant(f"{_BATCH}/first", np.array([0])),
            helper.make_node("Gather", [f"{_BATCH}/shape", f"{_BATCH}/first"], [_BATCH]),  # (1,)
        ]
        kept = list(nodes)
        del nodes[:]
        nodes.extend([*computed, *kept])
    for value in (*two.graph.input, *two.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    return two


def _kind(node: NodeProto) -> tuple[Any, ...]:
    attributes = [] if node.op_type == "Constant" else [a.SerializeToString() for a in node.attribute]
    return node.op_type, list(node.input), list(node.output), attributes


def drop_unread(model: ModelProto) -> None:
    """Drop the nodes and tensors on which no output rests."""
    read = {value.name for value in model.graph.output}
    kept = []
    for node in reversed(model.graph.node):
        if any(name in read for name in node.output):
            kept.append(node)
            read.update(node.input)
    del model.graph.node[:]
    model.graph.node.extend(reversed(kept))
    initializers = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(initializers)


def constants(model: ModelProto) -> list[tuple[str, TensorProto]]:
    """Return the name and the tensor of each constant."""
    found = [(tensor.name, tensor) for tensor in model.graph.initializer]
    for node in model.graph.node:
        if node.op_type == "Constant":
            found += [(node.output[0], a.t) for a in node.attribute if a.name == "value"]
    return found


def _factors(a: np.ndarray, b: np.ndarray, name: str) -> np.ndarray:
    """Return by what the number of images is multiplied in each number, 0 where it does not enter."""
    factors = np.where(a == b, 0, a // _TRACED[0])
    expected = [np.where(a == b, a, factors * n) for n in _TRACED]
    if not (np.array_equal(expected[0], a) and np.array_equal(expected[1], b)):
        raise _NotOpen(f"the constant {name} depends on it")
    return factors


def _times_batch(name: str, a: np.ndarray, factors: np.ndarray) -> list[NodeProto]:
    """Compute numbers of which some are multiples of the number of images."""
    from onnx import helper

    fixed = np.where(factors > 0, 0, a)
    scalar = a.ndim == 0
    nodes = [
        _constant(f"{name}/factors", factors.reshape(-1)),
        _constant(f"{name}/fixed", fixed.reshape(-1)),
        helper.make_node("Mul", [_BATCH, f"{name}/factors"], [f"{name}/product"]),
        helper.make_node("Add", [f"{name}/product", f"{name}/fixed"], [f"{name}/sum" if scalar else name]),
    ]
    if scalar:
        nodes += [
            _constant(f"{name}/axis", np.array([0])),
            helper.make_node("Squeeze", [f"{name}/sum", f"{name}/axis"], [name]),
        ]
    return nodes


def _repeated(name: str, a: np.ndarray, b: np.ndarray) -> list[NodeProto]:
    """Compute a tensor that repeats a part of itself for each image, along one axis."""
    from onnx import helper

    axes = [i for i in range(a.ndim) if a.shape[i] != b.shape[i]] if a.ndim == b.ndim else []
    part = np.split(a, _TRACED[0], axis=axes[0])[0] if len(axes) == 1 and a.shape[axes[0]] % _TRACED[0] == 0 else a
    if len(axes) != 1 or any(
        not np.array_equal(np.concatenate([part] * n, axis=axes[0]), whole)
        for n, whole in zip(_TRACED, (a, b), strict=True)
    ):
        raise _NotOpen(f"the constant {name} depends on it")
    along = np.array([i == axes[0] for i in range(a.ndim)], np.int64)
    return [
        _constant(f"{name}/part", part),
        *_times_batch(f"{name}/repeats", 1 - along, along),
        helper.make_node("Tile", [f"{name}/part", f"{name}/repeats"], [name]),
    ]


def _constant(name: str, value: np.ndarray | Sequence[int]) -> NodeProto:
    from onnx import helper, numpy_helper

    array = np.asarray(value)
    array = array.astype(np.int64) if array.dtype.kind == "i" else array
    node: NodeProto = helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array))
    return node


def drop_constant(model: ModelProto, name: str) -> None:
    """Remove a constant, wherever it stands."""
    for tensor in [tensor for tensor in model.graph.initializer if tensor.name == name]:
        model.graph.initializer.remove(tensor)
    for node in [node for node in model.graph.node if node.op_type == "Constant" and node.output[0] == name]:
        model.graph.node.remove(node)
