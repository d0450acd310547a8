"""The frozen backbone turns images into the maps of the chosen layers, and stops after the deepest of them.

Letters: B images, H x W pixels, C channels and h x w cells of a layer.
"""

from __future__ import annotations

import math
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from pickglass.errors import InputError, UnknownName
from pickglass.features.backbones.registry import Backbone, Tokens, find_backbone
from pickglass.features.backbones.weights import WeightsInfo, weights_for
from pickglass.nn.maps import Conv2dSame, NormAct2d, resampled_to

__all__ = ["FeatureExtractor", "layer_list", "layer_names", "untrained"]


class FeatureExtractor(nn.Module):
    """An extractor is a network cut off after the deepest layer asked for; it normalises, and is always in eval mode.

    Args:
        backbone: name; see :func:`pickglass.backbone_names`.
        layers: names of graph nodes, in the order wanted; short names such as ``stage3`` where the backbone has them.
            ``"layer1+layer2"`` names two.
        weights: as :mod:`pickglass.features.backbones.weights` describes: ``"default"``, ``"v2"``, ``"random"``, the
            name of a pretraining strategy or a file; None leaves them unset, to be loaded from a model file.
        seed: decides random weights.
        scales: sizes of the image, 1 as it is, at each of which the network runs; levels come scale after scale.

    Raises:
        UnknownName: no such backbone or layer.
        WeightsMissing: the file of the weights was not found.
        InputError: the weights do not fit, or a layer's output is not a map.
    """

    def __init__(
        self,
        backbone: str,
        layers: Sequence[str],
        weights: str | None = "default",
        seed: int = 0,
        scales: Sequence[float] = (1.0,),
    ) -> None:
        super().__init__()
        spec = find_backbone(backbone)
        network = _built(spec)
        self.backbone = backbone
        self.layers = layer_list(layers)
        self.interpolation: Literal["bilinear", "bicubic"] = spec.interpolation
        self.tokens = spec.tokens
        self.scales = tuple(scales)
        self._asked = (backbone, self.layers, weights, seed, self.scales)
        self.weights: WeightsInfo | None = None
        body, nodes = _cut(spec, network, self.layers)
        self.nodes = tuple(nodes)
        if weights is not None:
            state, self.weights = weights_for(spec, weights, seed, network)
            _load(body, network, state, f"weights {weights!r} of {backbone}")
        self.body = body.eval().requires_grad_(False)
        # the statistics belong to the weights, and so into the graph
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(1, 3, 1, 1), persistent=False)
        if self.weights is not None:
            self.expect(self.weights)

    def is_still(self, backbone: str, layers: Sequence[str], weights: str, seed: int, scales: Sequence[float]) -> bool:
        """Tell whether a new extractor of these arguments would be the same: not adapted, no weights of the user's."""
        own_file = Path(weights.rpartition(":")[2]).exists()  # also of "simclr:FILE"
        untouched = self.weights is not None and self.weights.adapted is None and not own_file
        return untouched and self._asked == (backbone, layer_list(layers), weights, seed, tuple(scales))

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
        return _arranged(outputs, self.nodes, self.tokens, size)

    def read(self, normalised: Tensor) -> tuple[Tensor, ...]:
        """Read images as :meth:`forward` does, which are normalised already."""
        return _read(self.body, self.nodes, self.tokens, normalised, self.scales)

    @torch.no_grad()
    def shapes(self, size: tuple[int, int]) -> list[tuple[int, int, int]]:
        """Tell (C, h, w) of each scale and layer for images of ``size`` (H, W).

        Raises:
            InputError: a layer's output is not (B, C, h, w), or the image is too small for the network.
        """
        device = next(self.buffers()).device
        if self.tokens is not None and (size[0] % self.tokens.patch or size[1] % self.tokens.patch):
            fits = tuple(max(1, round(n / self.tokens.patch)) * self.tokens.patch for n in size)
            raise InputError(
                f"{self.backbone} cuts images into patches of {self.tokens.patch} pixels, and {size[0]}x{size[1]} are "
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
        self.tokens = spec.tokens
        self.scales = scales
        self.body, self._nodes = _cut_to_train(spec, spec.build(), layers)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(1, 3, 1, 1), persistent=False)
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        normalised = (images - self.mean) / self.std
        # in this order a training step of a network of depthwise convolutions takes two thirds of the time on a CPU
        ordered = normalised.contiguous(memory_format=torch.channels_last)
        return _read(self.body, self._nodes, self.tokens, ordered, self.scales)


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
    return [*spec.aliases, *_nodes(_built(spec))]


def _read(
    body: nn.Module, nodes: Sequence[str], tokens: Tokens | None, normalised: Tensor, scales: Sequence[float]
) -> tuple[Tensor, ...]:
    levels: tuple[Tensor, ...] = ()
    for scale in scales:
        images = normalised if scale == 1 else resampled_to(normalised, _scaled(normalised, scale, tokens))
        levels += _arranged(body(images), nodes, tokens, (images.shape[2], images.shape[3]))
    return levels


def _scaled(images: Tensor, scale: float, tokens: Tokens | None) -> tuple[int, int]:
    """Compute the size of the images at this scale, in whole patches where there are any."""
    patch = 1 if tokens is None else tokens.patch
    height, width = (max(1, round(int(side) * scale / patch)) * patch for side in images.shape[2:])
    return height, width


def _arranged(
    outputs: Mapping[str, Tensor], nodes: Sequence[str], tokens: Tokens | None, size: tuple[int, int]
) -> tuple[Tensor, ...]:
    levels = tuple(outputs[node] for node in nodes)
    if tokens is None:
        return levels
    grid = (size[0] // tokens.patch, size[1] // tokens.patch)
    return tuple(_token_map(level, tokens, grid) for level in levels)


def _token_map(level: Tensor, tokens: Tokens, grid: tuple[int, int]) -> Tensor:
    """Lay tokens of a vision transformer out as a map; whatever is no sequence of tokens stays as it is."""
    if level.ndim != 3 or level.shape[1] != tokens.prefix + grid[0] * grid[1]:
        return level
    patches = level[:, tokens.prefix :].transpose(1, 2)  # (B, C, h * w)
    return patches.reshape(-1, patches.shape[1], *grid)  # (B, C, h, w)


def _built(spec: Backbone) -> nn.Module:
    """Build the network; the random numbers that it draws, for weights that are replaced, leave no trace."""
    with torch.random.fork_rng(devices=[]):
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

        leaves += get_notrace_modules()
        functions += get_notrace_functions()
    leaves = [part for part in leaves if issubclass(part, nn.Module)]
    return {"leaf_modules": leaves, "autowrap_modules": tuple(modules), "autowrap_functions": tuple(functions)}


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
    graph = tracer.trace(network.eval())
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


def _nodes(network: nn.Module) -> list[str]:
    return list(_traced(network)[1])


def _wanted(spec: Backbone, layers: tuple[str, ...], nodes: Sequence[str]) -> list[str]:
    """Translate short names of layers to nodes.

    Raises:
        UnknownName: the graph has no such node, and no module of that name.
    """
    if not layers:
        raise InputError(f"no layer was named; for instance layers={list(spec.aliases)[2:5:2] or ['layer2', 'layer3']}")
    wanted = [spec.aliases.get(layer, layer) for layer in layers]
    for layer, node in zip(layers, wanted, strict=True):
        if not any(n == node or n.startswith(f"{node}.") for n in nodes):
            raise UnknownName(
                f"layer of {spec.name}",
                layer,
                [*spec.aliases, *nodes, *{n.rsplit(".", i)[0] for n in nodes for i in (1, 2) if n.count(".") >= i}],
                f"python -c \"import pickglass; print(*pickglass.layer_names('{spec.name}'))\"",
            )
    return wanted


def _cut(spec: Backbone, network: nn.Module, layers: tuple[str, ...]) -> tuple[nn.Module, list[str]]:
    """Cut a network that stays in eval mode: its output is a dict of the nodes' names and their values.

    One drawing of the graph is enough for that; ``create_feature_extractor`` draws two, and the names a third.
    """
    body, named = _traced(network)
    wanted = _wanted(spec, layers, list(named))
    last: dict[str, fx.Node] = {}  # of a module, the value that is computed last
    for name, node in named.items():
        last.update({path: node for path in wanted if name == path or name.startswith(f"{path}.")})
    graph = body.graph
    for node in [node for node in graph.nodes if node.op == "output"]:
        graph.erase_node(node)
    graph.output(last)
    graph.eliminate_dead_code()
    body.delete_all_unused_submodules()
    body.recompile()
    return body, wanted


def _cut_to_train(spec: Backbone, network: nn.Module, layers: tuple[str, ...]) -> tuple[nn.Module, list[str]]:
    """Cut a network like :func:`_cut`, with a graph for each of training and eval mode."""
    from torchvision.models.feature_extraction import create_feature_extractor

    wanted = _wanted(spec, layers, _nodes(network))
    body = create_feature_extractor(
        network, {node: node for node in wanted}, tracer_kwargs=_kept_whole(), suppress_diff_warning=True
    )
    return body, wanted


def _load(target: nn.Module, network: nn.Module, state: dict[str, Tensor], what: str) -> None:
    """Load strictly: everything the target needs, and nothing the whole network does not have."""
    needed, whole = target.state_dict(), network.state_dict()
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
