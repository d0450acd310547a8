"""One backbone pass serves many detectors: all layers that any of them reads are computed once an image and kept.

An image is identified by the pixels that reach the network, so whoever asks with other pixels (another size, another
cut) gets features of its own, and nothing has to be said about rows, roles or batches.

Letters: B images, C channels, h x w cells of a layer.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from pickglass.features.batch import Batch
from pickglass.features.cache import FeatureCache
from pickglass.features.engine import BackboneEngine
from pickglass.features.extractor import FeatureExtractor, layer_list
from pickglass.runtime.compute import EngineName

__all__ = ["SharedFeatures"]


class SharedFeatures:
    """The features of a set of images are shared by detectors with the same backbone, weights and size.

    Args:
        backbone, weights, seed: as of :class:`pickglass.features.extractor.FeatureExtractor`; ``seed`` matters to
            random weights alone.
        layers: all layers that will be asked for.
        n_images: how many images are kept; further ones are computed anew each time.
        memory_gb: what may be held in memory; beyond it, in a temporary file.
        beside: features of the same backbone and weights at another size: extractors are built once for both.

    Attributes:
        computed: number of images that went through the backbone.
        seconds: time that this took.

    Use it as a context manager, and a detector reads from it after ``detector.shared_features = shared``.
    """

    def __init__(
        self,
        backbone: str,
        weights: str,
        seed: int,
        layers: Sequence[str],
        n_images: int,
        memory_gb: float,
        beside: SharedFeatures | None = None,
    ) -> None:
        self.layers = tuple(dict.fromkeys(layers))
        self._backbone = backbone
        self.n_images = n_images
        self.memory_gb = memory_gb
        self.computed = 0
        self.seconds = 0.0
        self._asked = (weights, seed)
        self._extractors: dict[tuple[str, ...], FeatureExtractor] = {} if beside is None else beside._extractors
        self.extractor = self.extractor_of(self.layers)
        self.engines: dict[tuple[str, EngineName], BackboneEngine] = {}
        self._caches: dict[tuple[str, EngineName], dict[str, FeatureCache]] = {}  # per engine, layer -> cache
        self._places: dict[tuple[str, EngineName], dict[bytes, int]] = {}  # per engine, pixels -> index in the caches

    def __enter__(self) -> SharedFeatures:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Forget all features."""
        for caches in self._caches.values():
            for cache in caches.values():
                cache.close()
        self._caches, self._places = {}, {}

    def extractor_of(self, layers: Sequence[str]) -> FeatureExtractor:
        """Return one extractor of these layers to all who ask: it is frozen, and takes a fifth of a second to build.

        A detector that is given it as ``detector.extractor`` keeps it at its fit where its settings agree with it.
        """
        key = layer_list(layers)
        if key not in self._extractors:
            self._extractors[key] = FeatureExtractor(self._backbone, key, *self._asked)
        return self._extractors[key]

    def view_of(self, layers: Sequence[str]) -> FeatureExtractor:
        """Return an extractor of these layers that is the one of all, of which it names some: quick to have.

        It is for a detector that judges here and is thrown away. Its own network would compute all layers, and its
        model file would hold the weights of all: for a detector that stays there is :meth:`extractor_of`.
        """
        return self.extractor.naming(layer_list(layers))

    def engine(self, extractor: FeatureExtractor, device: str, name: EngineName) -> BackboneEngine:
        """Make an engine that reads from here, in place of ``BackboneEngine(...)``.

        Several scales and adapted weights get an engine of their own.
        """
        shared = self.extractor
        if extractor.scales != shared.scales or (
            extractor.weights is not None and extractor.weights.adapted is not None
        ):
            return BackboneEngine(extractor, device, name)
        if (extractor.backbone, extractor.weights) != (shared.backbone, shared.weights) or set(extractor.layers) - set(
            self.layers
        ):
            raise RuntimeError(
                f"shared features of {shared.backbone} ({shared.weights}), layers {self.layers}: asked for layers "
                f"{extractor.layers} of {extractor.backbone} ({extractor.weights})"
            )
        if (device, name) not in self.engines:
            self.engines[device, name] = BackboneEngine(shared, device, name)
            self._caches[device, name], self._places[device, name] = {}, {}
        return _Served(self, extractor, device, name)

    @torch.no_grad()
    def levels(self, images: Tensor, layers: Sequence[str], device: str, name: EngineName) -> tuple[Tensor, ...]:
        """Read images, from what was kept where they came before.

        Args:
            images: (B, 3, H, W) RGB in [0, 1] on the CPU.
            layers: names, in the order wanted.
            device, name: of the engine, as of :meth:`engine`.

        Returns:
            (B, C, h, w) of each layer, on the device.
        """
        caches, places = self._caches[device, name], self._places[device, name]
        keys = [hashlib.blake2b(image.contiguous().numpy().data, digest_size=20).digest() for image in images]
        fresh = {key: i for i, key in enumerate(keys) if key not in places}
        computed: dict[str, Tensor] = {}
        if fresh:
            began = time.perf_counter()
            outputs = self.engines[device, name](images[list(fresh.values())])
            computed = {layer: level.cpu() for layer, level in zip(self.layers, outputs, strict=True)}  # (b, C, h, w)
            self.seconds += time.perf_counter() - began
            self.computed += len(fresh)
            room = min(len(fresh), self.n_images - len(places))
            if room > 0:
                self._keep(caches, {layer: level[:room] for layer, level in computed.items()})
                places.update({key: len(places) + n for n, key in enumerate(list(fresh)[:room])})
        if not fresh:
            kept = [places[key] for key in keys]
            return tuple(caches[layer].read(kept).levels[0].to(device) for layer in layers)
        at = {key: n for n, key in enumerate(fresh)}
        return tuple(
            torch.cat(
                [
                    computed[layer][at[key]][None] if key in at else caches[layer].read([places[key]]).levels[0]
                    for key in keys
                ]
            ).to(device)
            for layer in layers
        )

    def _keep(self, caches: dict[str, FeatureCache], levels: dict[str, Tensor]) -> None:
        if not caches:
            sizes = {layer: level[0].numel() for layer, level in levels.items()}
            share = self.memory_gb / sum(sizes.values())
            caches.update({layer: FeatureCache(self.n_images, share * size) for layer, size in sizes.items()})
        for layer, level in levels.items():
            caches[layer].add(Batch((level.contiguous(),)))


class _Served(BackboneEngine):
    """An engine that reads from the shared features."""

    def __init__(self, shared: SharedFeatures, extractor: FeatureExtractor, device: str, name: EngineName) -> None:
        super().__init__(extractor, device, name)
        self.shared = shared

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        (images,) = inputs
        levels = self.shared.levels(images, self.extractor.layers, self.device, self.wanted)
        self.name = self.shared.engines[self.device, self.wanted].name  # it may have fallen back to torch
        return levels
