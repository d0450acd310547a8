"""The frozen backbone turns images into the maps of the chosen layers, and stops after the deepest of them.

Letters: B images, H x W pixels, C channels and h x w cells of a layer.
"""

from __future__ import annotations

import math
import re
import sys
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from copy import copy
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from pickglass.errors import InputError, UnknownName
from pickglass.features.backbones.per_size import RotaryTable, WindowMask
from pickglass.features.backbones.registry import USUAL_STRIDES, Backbone, Cells, OwnBackbone, find_backbone
from pickglass.features.backbones.weights import WeightsInfo, weights_for
from pickglass.features.folding import BySize, folded, has_tables
from pickglass.nn.maps import Conv2dSame, DrawnFrom, NormAct2d, cells_of, resampled_to

__all__ = ["FeatureExtractor", "layer_list", "layer_names", "shown_layers", "untrained", "usual_layers"]


class FeatureExtractor(nn.Module):
    """An extractor is a network cut off after the deepest layer asked for; it normalises, and is always in eval mode.

    Args:
        backbone: name; see :func:`pickglass.backbone_names`.
        layers: names of graph nodes, in the order wanted; short names such as ``stage3`` where the backbone has them.
            ``"layer1+layer2"`` names two. ``block6`` of a vision transformer is its sixth block, ``block6.norm`` the
            same after the network's final norm. None: the layers that stand for ``strides``, see :func:`usual_layers`.
        weights: as :mod:`pickglass.features.backbones.weights` describes: ``"default"``, ``"v2"``, ``"random"``, the
            name of a pretraining strategy or a file; None leaves them unset, to be loaded from a model file.
        seed: decides random weights.
        scales: sizes of the image, 1 as it is, at each of which the network runs; levels come scale after scale.
        strides: pixels of the input a cell, of the layers to choose where none is named.

    Attributes:
        cells: how the network lays its cells out.
        layers: the names of the layers.

    Raises:
        UnknownName: no such backbone or layer.
        WeightsMissing: the file of the weights was not found.
        InputError: the weights do not fit, or a layer's output is not a map.
    """

    def __init__(
        self,
        backbone: str,
        layers: Sequence[str] | None = None,
        weights: str | None = "default",
        seed: int = 0,
        scales: Sequence[float] = (1.0,),
        strides: Sequence[int] = USUAL_STRIDES,
    ) -> None:
        super().__init__()
        spec = find_backbone(backbone)
        network = _built(spec)
        drawn = _Drawn(spec, network)
        self.backbone = backbone
        self.layers = drawn.usual(strides) if layers is None else layer_list(layers)
        self.interpolation: Literal["bilinear", "bicubic"] = spec.interpolation
        self.cells = drawn.cells
        self.scales = tuple(scales)
        self._asked = (backbone, _asked_layers(layers, strides), weights, seed, self.scales)
        self.weights: WeightsInfo | None = None
        self._whole: tuple[FeatureExtractor, ...] = ()  # in a tuple, so that it is no part of this module
        self._shapes: dict[tuple[int, int], list[tuple[int, int, int]]] = {}  # of images of (H, W)
        body, nodes = drawn.cut(self.layers)
        self.nodes = tuple(nodes)
        self._constants = frozenset(name for name, _ in body.named_buffers()) - network.state_dict().keys()
        if weights is not None:
            state, self.weights = weights_for(spec, weights, seed, network)
            _load(body, network, state, self._constants, f"weights {weights!r} of {backbone}")
        self.body: nn.Module = body.eval().requires_grad_(False)
        self._set_constants_apart()
        # the statistics belong to the weights, and so into the graph
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(1, 3, 1, 1), persistent=False)
        if self.weights is not None:
            self.expect(self.weights)

    def is_still(
        self,
        backbone: str,
        layers: Sequence[str] | None,
        weights: str,
        seed: int,
        scales: Sequence[float],
        strides: Sequence[int],
    ) -> bool:
        """Tell whether a new extractor of these arguments would be the same: not adapted, nothing of the user's."""
        own = isinstance(backbone, OwnBackbone) or Path(weights.rpartition(":")[2]).exists()  # also of "simclr:FILE"
        untouched = self.weights is not None and self.weights.adapted is None and not own
        return untouched and self._asked == (backbone, _asked_layers(layers, strides), weights, seed, tuple(scales))

    def naming(self, layers: Sequence[str]) -> FeatureExtractor:
        """Return an extractor that gives some of the layers of this one and is this one otherwise, network and all."""
        at = [self.layers.index(layer) for layer in layers]
        twin = copy(self)
        twin._whole = (self,)
        twin.layers, twin.nodes = tuple(layers), tuple(self.nodes[i] for i in at)
        backbone, _, weights, seed, scales = self._asked
        twin._asked = (backbone, twin.layers, weights, seed, scales)
        twin._shapes = {}
        return twin

    def _set_constants_apart(self) -> None:
        """Keep constants of the graph, which follow from the network's code, out of states and model files."""
        for name in self._constants:
            owner, _, own = name.rpartition(".")
            self.body.get_submodule(owner)._non_persistent_buffers_set.add(own)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._set_constants_apart()  # a copied graph takes all its tensors for weights

    def expect(self, weights: WeightsInfo) -> None:
        """Normalise and resize images as these weights expect it; for weights that come from a model file."""
        self.weights = weights
        if weights.mean is not None and weights.std is not None:
            self.mean.copy_(torch.tensor(weights.mean).view(1, 3, 1, 1))
            self.std.copy_(torch.tensor(weights.std).view(1, 3, 1, 1))
        if weights.interpolation is not None:
            self.interpolation = weights.interpolation

    def train(self, mode: bool = True) -> FeatureExtractor:
        """Stay in eval mode whatever the surrounding module does: the backbone is frozen."""
        return super().train(False)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Read images.

        Args:
            images: (B, 3, H, W) RGB in [0, 1].

        Returns:
            (B, C, h, w) of each scale and layer, in the order of ``scales`` and ``layers``.
        """
        return self.read((images - self.mean) / self.std)

    def arranged(self, outputs: Mapping[str, Tensor], size: tuple[int, int]) -> tuple[Tensor, ...]:
        """Order what the body gave for images of ``size`` (H, W) by ``layers``, and lay tokens out as maps."""
        return _arranged(outputs, self.nodes, self.cells, size)

    def read(self, normalised: Tensor) -> tuple[Tensor, ...]:
        """Read images as :meth:`forward` does, which are normalised already."""
        return _read(self.body, self.nodes, self.cells, normalised, self.scales)

    def for_size(self, size: tuple[int, int]) -> FeatureExtractor:
        """Return an extractor for images of ``size`` (H, W) alone, in which what follows from it is a constant.

        It shares its weights with this one, and is this one where there is nothing to fold.
        """
        body = self.body
        if not isinstance(body, fx.GraphModule) or not has_tables(body):
            return self
        sizes = {size if scale == 1 else _scaled(size, scale, self.cells) for scale in self.scales}
        twin = copy(self)
        twin._modules = dict(self._modules)
        twin.body = BySize({(h, w): folded(body, torch.zeros(1, 3, h, w, device=self.mean.device)) for h, w in sizes})
        return twin.eval()

    def fitting(self, size: tuple[int, int], up: bool = False) -> tuple[int, int]:
        """Return the nearest size (H, W) that the network reads: whole patches, where it cuts images into such.

        Args:
            size: (H, W) in pixels.
            up: the nearest that is no smaller.
        """
        patch = self.cells.patch
        height, width = (max(1, math.ceil(n / patch) if up else round(n / patch)) * patch for n in size)
        return height, width

    @torch.no_grad()
    def shapes(self, size: tuple[int, int]) -> list[tuple[int, int, int]]:
        """Tell (C, h, w) of each scale and layer for images of ``size`` (H, W).

        Raises:
            InputError: a layer's output is not (B, C, h, w), or the image is too small for the network.
        """
        if size not in self._shapes:
            self._shapes[size] = self._measured(size)
        return list(self._shapes[size])

    def _measured(self, size: tuple[int, int]) -> list[tuple[int, int, int]]:
        """Find out the shapes by running the network, or ask the extractor that this one is a part of."""
        for whole in self._whole:
            known, n = whole.shapes(size), len(whole.layers)
            at = [whole.layers.index(layer) for layer in self.layers]
            return [known[scale * n + i] for scale in range(len(self.scales)) for i in at]
        device = next(self.buffers()).device
        if self.fitting(size) != size:
            fits = self.fitting(size)
            raise InputError(
                f"{self.backbone} cuts images into patches of {self.cells.patch} pixels, and {size[0]}x{size[1]} are "
                f"no multiple of that: the nearest size that fits is {fits[0]}x{fits[1]}"
            )
        try:
            outputs = self(torch.zeros(1, 3, *size, device=device))
        except (RuntimeError, ValueError) as error:
            raise InputError(
                f"{self.backbone} cannot run on images of {size[0]}x{size[1]} pixels: {error}. Try a larger size."
            ) from error
        for layer, output in zip(self.layers * len(self.scales), outputs, strict=True):
            if not isinstance(output, Tensor) or output.ndim != 4:
                got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
                raise InputError(
                    f"layer {layer!r} of {self.backbone} gives {got}, expected maps (B, C, h, w): choose another layer"
                )
        return [(o.shape[1], o.shape[2], o.shape[3]) for o in outputs]


def untrained(backbone: str, layers: Sequence[str], scales: Sequence[float] = (1.0,)) -> nn.Module:
    """Build a backbone of random weights to be trained, cut off and fed like :class:`FeatureExtractor`.

    The weights are each layer's own initialisation, drawn from torch's default generator. All parameters require
    gradients; batch normalisation follows ``train()`` and ``eval()``, and the network starts in eval mode.

    Args:
        backbone: name; see :func:`pickglass.backbone_names`.
        layers: names of graph nodes, in the order wanted, or the backbone's short names.
        scales: as of :class:`FeatureExtractor`.

    Returns:
        A module: (B, 3, H, W) RGB in [0, 1] -> per scale and layer (B, C, h, w).

    Raises:
        UnknownName: no such backbone or layer.
    """
    return _Untrained(find_backbone(backbone), layer_list(layers), scales)


class _Untrained(nn.Module):
    def __init__(self, spec: Backbone, layers: tuple[str, ...], scales: Sequence[float]) -> None:
        super().__init__()
        self.scales = scales
        drawn = _Drawn(spec, spec.build())
        self.cells = drawn.cells
        self.body, self._nodes = drawn.cut_to_train(layers)
        _keep_depthwise_exact(self.body)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(1, 3, 1, 1), persistent=False)
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        normalised = (images - self.mean) / self.std
        # in this order a training step of a network of depthwise convolutions takes two thirds of the time on a CPU
        ordered = normalised.contiguous(memory_format=torch.channels_last)
        return _read(self.body, self._nodes, self.cells, ordered, self.scales)


class _FullPrecision(nn.Conv2d):
    """A convolution computes in float32 on a CPU whatever the precision around it.

    A CPU has no quick way to train a depthwise convolution in bfloat16: its backward pass takes five times as long.
    """

    def forward(self, input: Tensor) -> Tensor:
        if input.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return super().forward(input)
        with torch.autocast("cpu", enabled=False):
            return super().forward(input.float()).to(input.dtype)


class _FullPrecisionSame(_FullPrecision, Conv2dSame):
    pass


def _keep_depthwise_exact(body: nn.Module) -> None:
    """Replace depthwise convolutions by such as compute in float32; the tensors and their names stay."""
    kinds = {nn.Conv2d: _FullPrecision, Conv2dSame: _FullPrecisionSame}
    for name, part in list(body.named_modules()):
        if isinstance(part, nn.Conv2d) and type(part) in kinds and part.groups == part.in_channels > 1:
            exact = object.__new__(kinds[type(part)])
            exact.__dict__.update(part.__dict__)
            owner, _, own = name.rpartition(".")
            setattr(body.get_submodule(owner), own, exact)


def layer_list(layers: Sequence[str]) -> tuple[str, ...]:
    """List the names of layers, also of those written as one, ``"layer1+layer2"``."""
    return tuple(name for name in layers.split("+") if name) if isinstance(layers, str) else tuple(layers)


def layer_names(backbone: str) -> list[str]:
    """List all layers of a backbone that can be asked for: its short names, then every node of its graph in order.

    Example:
        >>> from pickglass.features import layer_names
        >>> layer_names("resnet18")[:3]
        ['conv1', 'bn1', 'relu']
    """
    spec = find_backbone(backbone)
    return _Drawn(spec, _built(spec)).names()


def usual_layers(backbone: str, strides: Sequence[int] = USUAL_STRIDES) -> tuple[str, ...]:
    """Name the layers of a backbone that are read where nobody names any.

    Of the table of layers, those that stand last at each of the strides; of a vision transformer, whose cells all have
    the size of a patch, the blocks at a quarter, half and three quarters of its depth, or the last of them where one
    layer is asked for; of any other network, the last node of its graph at each of the strides.

    Args:
        backbone: name; see :func:`pickglass.backbone_names`.
        strides: pixels of the input a cell.

    Raises:
        InputError: the network is not in the table, and no node gives square maps at one of the strides.
    """
    spec = find_backbone(backbone)
    return spec.usual(strides) or _Drawn(spec, _built(spec)).usual(strides)


def shown_layers(backbone: str, side: int = 256) -> list[str]:
    """Name the layers of a backbone that are worth showing, finest first.

    They are those of the table of layers; of any other network, the last node of each grid, or the blocks of a vision
    transformer.

    Args:
        backbone: name; see :func:`pickglass.backbone_names`.
        side: side of a square image in pixels; square maps of more than one cell count.

    Raises:
        InputError: no node gives such maps.
    """
    spec = find_backbone(backbone)
    if spec.levels:
        return [level.name for level in spec.levels]
    drawn = _Drawn(spec, _built(spec))
    if drawn.depth:
        return [f"block{block}" for block in drawn.quarters()]
    last = drawn.last_nodes(drawn.cells.patch * (side // drawn.cells.patch))
    if not last:
        raise InputError(
            f"{backbone} has no node that gives square maps: name its layers, see layers --list {backbone}"
        )
    return [last[cells] for cells in sorted(last, reverse=True)]


def _asked_layers(layers: Sequence[str] | None, strides: Sequence[int]) -> tuple[object, ...]:
    return tuple(strides) if layers is None else layer_list(layers)


def _read(
    body: nn.Module, nodes: Sequence[str], cells: Cells, normalised: Tensor, scales: Sequence[float]
) -> tuple[Tensor, ...]:
    levels: tuple[Tensor, ...] = ()
    for scale in scales:
        images = normalised
        if scale != 1:
            images = resampled_to(normalised, _scaled(cells_of(normalised), scale, cells))
        levels += _arranged(body(images), nodes, cells, cells_of(images))
    return levels


def _scaled(size: tuple[int, int], scale: float, cells: Cells) -> tuple[int, int]:
    """Compute the size of the images at this scale, in whole patches where there are any."""
    height, width = (max(1, round(side * scale / cells.patch)) * cells.patch for side in size)
    return height, width


def _arranged(
    outputs: Mapping[str, Tensor], nodes: Sequence[str], cells: Cells, size: tuple[int, int]
) -> tuple[Tensor, ...]:
    grid = (size[0] // cells.patch, size[1] // cells.patch)
    return tuple(_as_map(outputs[node], cells, grid) for node in nodes)


def _as_map(level: Tensor, cells: Cells, grid: tuple[int, int]) -> Tensor:
    """Lay tokens of a vision transformer out as a map, and channels before cells; anything else stays as it is."""
    if cells.channels_last and level.ndim == 4:
        return level.permute(0, 3, 1, 2)  # (B, C, h, w)
    prefix = cells.prefix
    if prefix is None or level.ndim != 3 or level.shape[1] != prefix + grid[0] * grid[1]:
        return level
    patches = level[:, prefix:].transpose(1, 2)  # (B, C, h * w)
    return patches.reshape(-1, patches.shape[1], *grid)  # (B, C, h, w)


def _built(spec: Backbone) -> nn.Module:
    """Build the network; the random numbers that it draws, for weights that are replaced, leave no trace."""
    with torch.device("cpu"), DrawnFrom(0):
        return spec.build()


def _kept_whole() -> dict[str, Any]:
    """Name what is no part of the graph but a node in it: our steps, torchvision's, and timm's size-dependent padding.

    A library that was not imported has no part in the network, and importing it would take seconds.
    """
    leaves: list[type] = [Conv2dSame, NormAct2d]
    modules, functions = [math], []
    if "torchvision" in sys.modules:
        import torchvision

        leaves += [part for part in vars(torchvision.ops).values() if isinstance(part, type)]
        modules.append(torchvision.ops)
    if "timm" in sys.modules:
        from timm.models._features_fx import get_notrace_functions, get_notrace_modules

        leaves += [*get_notrace_modules(), RotaryTable, WindowMask]
        functions += get_notrace_functions()
    leaves = [part for part in leaves if issubclass(part, nn.Module)]
    return {"leaf_modules": leaves, "autowrap_modules": tuple(modules), "autowrap_functions": tuple(functions)}


_CLASSIFIES = ("classifier.", "head.", "fc.")  # what tells classes apart is no layer to read
_NUMBER = re.compile(r"_\d+$")  # fx counts the occurrences of an operation in the whole network


class _Tracer(fx.Tracer):
    """Draw the graph that torchvision's ``create_feature_extractor`` draws."""

    def __init__(self) -> None:
        parts = _kept_whole()
        self.leaves = tuple(parts.pop("leaf_modules"))
        super().__init__(**parts)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Leave torch's own modules whole, and those that are named here."""
        return isinstance(m, self.leaves) or super().is_leaf_module(m, module_qualified_name)


def _traced(network: nn.Module) -> tuple[fx.GraphModule, dict[str, fx.Node]]:
    """Draw the graph of a network as it runs in eval mode; its nodes get torchvision's names.

    A name is the path of the module, or that of the module around an operation and the operation's own; at its second
    occurrence ``_1`` is added. Inputs and parameters have none.
    """
    tracer = _Tracer()
    for kind in type(network).__mro__:  # a method of a base is found in the file of that base
        tracer._autowrap_search += [sys.modules[kind.__module__]] * kind.__module__.startswith("timm.")
    graph = tracer.trace(network.eval())
    for node in graph.nodes:
        node.type = None  # the annotation of an argument; as a text, torch 2.6 cannot pickle it
    named: dict[str, fx.Node] = {}
    occurrences: Counter[str] = Counter()
    for node in graph.nodes:
        if node.op == "call_module":
            path = str(node.target)
        elif node.op in ("call_function", "call_method"):
            around = [path for path, _ in node.meta.get("nn_module_stack", {}).values()][-1:]
            path = ".".join([*around, _NUMBER.sub("", node.name)]).lstrip(".")
        else:
            continue
        named[f"{path}_{occurrences[path]}" if path in occurrences else path] = node
        occurrences[path] += 1
    return fx.GraphModule(tracer.root, graph, type(network).__name__), named


class _Drawn:
    """A network with its graph, drawn once: from it come its layers and the network that ends behind them."""

    def __init__(self, spec: Backbone, network: nn.Module) -> None:
        self.spec = spec
        self.network = network
        self.cells = Cells.of(network)
        self.body, self.named = _traced(network)
        blocks = getattr(network, "blocks", None)
        self.depth = (
            len(blocks) if self.cells.prefix is not None and isinstance(blocks, (nn.Sequential, nn.ModuleList)) else 0
        )
        self._normed = self.depth > 0 and isinstance(getattr(network, "norm", None), nn.LayerNorm)

    def names(self) -> list[str]:
        """List the short names and all nodes of the graph."""
        short = list(self.spec.aliases)
        blocks = [f"block{i}{end}" for i in range(1, self.depth + 1) for end in ("", *([".norm"] * self._normed))]
        return list(dict.fromkeys([*short, *blocks, *self.named]))

    def quarters(self) -> tuple[int, ...]:
        """Number the blocks at a quarter, half and three quarters of the depth, and the last; they count from 1."""
        return tuple(dict.fromkeys(max(1, round(self.depth * i / 4)) for i in (1, 2, 3, 4)))

    def usual(self, strides: Sequence[int]) -> tuple[str, ...]:
        """Name the layers to read where nobody names any; see :func:`usual_layers`."""
        stated = self.spec.usual(strides)
        if stated:
            return stated
        if self.depth:
            blocks = [f"block{block}" for block in self.quarters()[:-1]]
            return tuple(blocks[-1:] if len(strides) == 1 else blocks)
        side = 16 * max(strides)
        last = self.last_nodes(side)
        chosen: dict[int, str] = {}
        for cells in sorted(last):  # convolutions without padding lose some cells
            chosen |= {n: last[cells] for n in strides if abs(math.log(side / cells / n)) < math.log(1.2)}
        missing = [stride for stride in strides if stride not in chosen]
        if missing:
            raise InputError(
                f"{self.spec.name} is not in the table of layers, and no node of its graph gives square maps at a "
                f"stride of {' and '.join(map(str, missing))} pixels: name its layers (layers, --layers); "
                f"'pickglass layers {self.spec.name}' shows them"
            )
        return tuple(chosen[stride] for stride in strides)

    def last_nodes(self, side: int) -> dict[int, str]:
        """Return the cells in a row of each square map that an image of ``side`` pixels gives -> the layer it ends in.

        That is the outermost module which ends at that grid, so that it is the output of a stage and no step inside the
        next one; of several, the last.
        """
        shapes = _Shapes(self.body)
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), suppress(Exception):
            shapes.run(torch.empty(1, 3, side, side))  # what comes before a step that does not take this size is known
        grids: dict[str, int] = {}  # node -> cells in a row
        for name, node in self.named.items():
            output = shapes.outputs.get(node)
            level = None if output is None else _as_map(output, self.cells, (side // self.cells.patch,) * 2)
            if level is None or level.ndim != 4 or level.shape[0] != 1 or name.startswith(_CLASSIFIES):
                continue
            if level.shape[2] == level.shape[3] and 1 < level.shape[2] < side:
                grids[name] = int(level.shape[2])
        ends: dict[str, str] = {}  # module -> its last node
        inside: dict[str, set[int]] = {}  # module -> grids of its nodes
        for name in self.named:
            for module in _around(name):
                ends[module] = name
                inside.setdefault(module, set()).update({grids[name]} if name in grids else ())
        found: dict[int, tuple[int, str]] = {}  # cells in a row -> depth and name of the layer
        for name, cells in grids.items():
            # a module with more than two grids is the whole network, or half of it
            stage = next(m for m in _around(name) if m == name or (ends[m] == name and len(inside[m]) <= 2))
            depth = stage.count(".")
            if cells not in found or depth <= found[cells][0]:
                found[cells] = depth, stage
        return {cells: stage for cells, (_, stage) in found.items()}

    def wanted(self, layers: tuple[str, ...]) -> list[str]:
        """Translate short names of layers to nodes.

        Raises:
            UnknownName: the graph has no such node, and no module of that name.
        """
        if not layers:
            raise InputError(f"no layer was named; for instance layers={list(self.usual(USUAL_STRIDES))}, or None")
        nodes = list(self.named)
        wanted = [self._node(layer) for layer in layers]
        for layer, node in zip(layers, wanted, strict=True):
            inside = self._before_norm(node) or node
            if not any(n == inside or n.startswith(f"{inside}.") for n in nodes):
                raise UnknownName(
                    f"layer of {self.spec.name}",
                    layer,
                    [*self.names(), *{n.rsplit(".", i)[0] for n in nodes for i in (1, 2) if n.count(".") >= i}],
                    f"pickglass layers --list {self.spec.name}",
                )
        return wanted

    def _node(self, layer: str) -> str:
        block = re.fullmatch(r"block([1-9]\d*)(\.norm)?", layer)
        if block and self.depth:
            return f"blocks.{int(block[1]) - 1}{block[2] or ''}"
        return self.spec.aliases.get(layer, layer)

    def _before_norm(self, node: str) -> str | None:
        """Return the block whose tokens the network's final norm is to be applied to; None: this is no such layer."""
        block = re.fullmatch(r"(blocks\.\d+)\.norm", node)
        return block[1] if block and self._normed else None

    def cut(self, layers: tuple[str, ...]) -> tuple[nn.Module, list[str]]:
        """Cut the network, which stays in eval mode: its output is a dict of the nodes' names and their values.

        One drawing of the graph is enough for that; ``create_feature_extractor`` draws two, and the names a third.
        """
        body, wanted = self.body, self.wanted(layers)
        graph = body.graph
        ends = {path: self._before_norm(path) or path for path in wanted}
        last: dict[str, fx.Node] = {}  # of a module, the value that is computed last
        for name, node in self.named.items():
            last.update({path: node for path, end in ends.items() if name == end or name.startswith(f"{end}.")})
        for node in [node for node in graph.nodes if node.op == "output"]:
            graph.erase_node(node)
        for path in wanted:
            if ends[path] != path:
                body.add_submodule("norm", self.network.get_submodule("norm"))  # the drawn one is its steps alone
                with graph.inserting_after(last[path]):
                    last[path] = graph.call_module("norm", (last[path],))
        graph.output(last)
        graph.eliminate_dead_code()
        body.delete_all_unused_submodules()
        body.recompile()
        return body, wanted

    def cut_to_train(self, layers: tuple[str, ...]) -> tuple[nn.Module, list[str]]:
        """Cut the network with a graph for each of training and eval mode."""
        from torchvision.models.feature_extraction import create_feature_extractor

        wanted = self.wanted(layers)
        normed = [layer for layer, node in zip(layers, wanted, strict=True) if self._before_norm(node)]
        if normed:
            raise InputError(
                f"layer {normed[0]!r} of {self.spec.name}: a network that is trained here has no final norm behind "
                f"its blocks: read {normed[0].removesuffix('.norm')!r}"
            )
        parts = _kept_whole()
        body = create_feature_extractor(
            self.network, {node: node for node in wanted}, tracer_kwargs=parts, suppress_diff_warning=True
        )
        return body, wanted


def _around(name: str) -> list[str]:
    """Name the modules around a node from the outermost to the node itself."""
    parts = name.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts) + 1)]


class _Shapes(fx.Interpreter):
    """An interpreter notes the tensor that each node of a graph gives."""

    def __init__(self, body: fx.GraphModule) -> None:
        super().__init__(body)
        self.outputs: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        output = super().run_node(n)
        if isinstance(output, Tensor):
            self.outputs[n] = output
        return output


def _load(
    target: nn.Module, network: nn.Module, state: dict[str, Tensor], constants: Collection[str], what: str
) -> None:
    """Load strictly: everything the target needs, and nothing the whole network does not have.

    Constants of the graph are no weights: the network's code made them.
    """
    needed, whole = {k: v for k, v in target.state_dict().items() if k not in constants}, network.state_dict()
    missing = [k for k in needed if k not in state and not k.endswith("num_batches_tracked")]
    foreign = [k for k in state if k not in whole]
    if missing or foreign:
        raise InputError(
            f"{what} do not fit: {len(missing)} tensors are missing, e.g. {missing[:8]}, and "
            f"{len(foreign)} have no place, e.g. {foreign[:8]}"
        )
    wrong = [
        f"{key}: {tuple(state[key].shape)} for {tuple(value.shape)}"
        for key, value in needed.items()
        if key in state and state[key].shape != value.shape
    ]
    if wrong:
        raise InputError(f"{what} do not fit: {len(wrong)} tensors have another shape, e.g. {wrong[0]}")
    target.load_state_dict({k: state[k] for k in needed if k in state}, strict=False)
