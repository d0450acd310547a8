"""A model keeps facts and features of good images, so that ``pickglass drift`` can compare coming images with them.

Letters: B images, P positions, C channels, h x w cells, d pooled features.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Unpack

from pickglass.calibration.drift import ImageFacts, Sample, image_facts
from pickglass.data import Table, as_table, known_names
from pickglass.detectors.detector import Detector
from pickglass.detectors.fitting import FitObserver, judged_batch
from pickglass.detectors.loading import FeatureLoader, LoadedBatch, silent
from pickglass.detectors.method import Method
from pickglass.errors import Failure
from pickglass.nn.pooling import channel_means
from pickglass.runtime.compute import ComputeArguments, ComputeOptions, Progress

__all__ = ["DriftSample", "describe"]


class DriftSample(FitObserver):
    """The sample keeps facts and features of the images that set the thresholds, for ``pickglass drift``.

    They were held back, or judged as if they had been left out of the fit. The sample goes with the model, as
    ``detector.reference``. Without thresholds (``calibrate=0``) there is none. In an update it joins that of the fit.

    Example:
        ``PatchCore().fit(bottle.train, calibrate=0.2, observers=[DriftSample()])``
    """

    def __init__(self) -> None:
        self._facts: list[ImageFacts] = []
        self._scores: list[float] = []
        self._features: list[np.ndarray] = []  # (B, d) each
        self._groups: list[str | None] = []
        self._paths: list[str] = []

    def prepared(self, table: Table, loader: FeatureLoader, progress: Progress) -> Table:
        """Forget the images of an earlier fit."""
        DriftSample.__init__(self)
        return table

    def judged(self, loaded: LoadedBatch, scores: Tensor) -> None:
        """Keep the facts, scores and features of a batch."""
        values = [item.value for item in loaded.sound if item.value is not None]
        self._facts += [image_facts(value.image, value.keep) for value in values]
        self._scores += scores.tolist()
        self._groups += [item.row.group for item in loaded.sound]
        self._paths += [item.row.path for item in loaded.sound]
        pooled = loaded.means
        if loaded.batch is not None:
            pooled = channel_means(loaded.batch.levels, loaded.batch.keep, len(values))
        if pooled is not None:
            self._features.append(pooled.cpu().numpy())

    def settled(self, scores: Tensor) -> None:
        """Keep the scores that new images will be given, instead of those before places and level were known."""
        self._scores = scores.tolist()

    def sample(self, settings: str) -> Sample:
        """Return what was kept; ``settings`` is the digest of what the scores depend on."""
        pooled = np.concatenate(self._features) if self._features else np.zeros((0, 0), np.float32)
        return Sample.of(self._facts, self._scores, pooled, self._groups, settings, known_names(self._paths))

    def fitted(self, method: Method) -> None:
        """Give the sample to the model."""
        sample = self.sample(method.settings_digest())
        if len(sample):
            method.reference = sample if method.reference is None else method.reference.joined(sample)


def describe(
    detector: Detector, data: Any, *, progress: Progress | None = None, **compute: Unpack[ComputeArguments]
) -> tuple[Sample, list[Failure]]:
    """Judge images and return what ``drift`` asks of them, and those that cannot be read.

    Args:
        detector: fitted.
        data: images, as for :meth:`pickglass.Detector.predict`.
        progress: called with (stage, done, total).
        compute: as in :meth:`pickglass.Detector.fit`.
    """
    table = detector.provenance.within_regions(as_table(data, role="test"))
    sample, failures, done = DriftSample(), [], 0
    loader = detector.loader(ComputeOptions(**compute))
    for loaded in loader.batches(table, features=not loader.in_parts):
        failures += loaded.failures
        if loaded.sound:
            with torch.no_grad():
                loaded, (scores, _, _) = judged_batch(detector, loader, loaded)
            sample.judged(loaded, scores)
        done += len(loaded.items)
        (progress or silent)("judging images", done, len(table))
    return sample.sample(detector.settings_digest()), failures
