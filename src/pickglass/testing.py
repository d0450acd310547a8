"""The public conformance suite: what every detector must do, whoever wrote it.

``check_detector(MyMethod(size=96))`` runs all checks and raises AssertionError with the name of the one that failed.
"""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

from pickglass.data import Row, Table, paint
from pickglass.errors import NotFitted
from pickglass.methods import Detector, load
from pickglass.result import Prediction

__all__ = ["CHECKS", "check_detector", "textures"]

Images = npt.NDArray[np.uint8]


def check_detector(detector: Detector, *, tolerance: float = 1e-4, n_images: int = 24) -> list[str]:
    """Run every check on detectors of the same class and settings.

    Args:
        detector: unfitted; it is not changed. Small settings make the suite quick, e.g. ``size=96``.
        tolerance: allowed difference between a batch of N and N batches of one, relative to the largest score.
        n_images: good images to fit on.

    Returns:
        The names of the checks, all passed.

    Raises:
        AssertionError: a check failed; the message starts with its name.
    """
    suite = _Suite(detector, tolerance, n_images)
    for name, check in CHECKS.items():
        try:
            check(suite)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error
    return list(CHECKS)


def textures(n: int, side: int, seed: int = 0) -> Images:
    """Good images of a made-up rough surface: (n, side, side, 3) uint8, reproducible."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(n, side, side))
    fine, coarse = gaussian_filter(noise, (0, 1, 1)), gaussian_filter(noise, (0, 4, 4))
    grey = 128 + 12 * fine / fine.std() + 8 * coarse / coarse.std()
    return np.repeat(grey.clip(0, 255).astype(np.uint8)[..., None], 3, axis=3)


class _Suite:
    """One fitted detector, the images and what it says of them, which the checks share."""

    def __init__(self, detector: Detector, tolerance: float, n_images: int) -> None:
        self.settings = detector.configuration()
        self.cls = type(detector)
        self.tolerance = tolerance
        side = 3 * max(detector.input_size) // 2  # not the input size: resizing is part of the job
        self.good = textures(n_images, side)
        self.held_out = textures(6, side, seed=1)
        rng = np.random.default_rng(2)
        self.painted = np.stack([paint(image, "hole", side / 6, rng, contrast=2.0).image for image in self.held_out])
        self.before = [images.copy() for images in (self.good, self.held_out, self.painted)]
        self.fitted = self.new()
        self.returned = self.fitted.fit(self.good)

    @cached_property
    def of_held_out(self) -> Prediction:
        return self.fitted.predict(self.held_out)

    @cached_property
    def of_painted(self) -> Prediction:
        return self.fitted.predict(self.painted)

    def new(self) -> Detector:
        return self.cls.configured(self.settings)


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def _constructor_stores_only(suite: _Suite) -> None:
    before = str(np.random.get_state())
    detector = suite.new()
    names = [name for name in inspect.signature(suite.cls.__init__).parameters if name != "self"]
    for name in names:
        _expect(getattr(detector, name) is suite.settings[name], f"{name} was not stored as given")
    _expect(detector.extractor is None and not list(detector.parameters()), "the constructor already built a network")
    _expect(str(np.random.get_state()) == before, "the constructor drew random numbers")


def _unfitted_use_names_the_remedy(suite: _Suite) -> None:
    uses: list[Callable[[Detector], object]] = [
        lambda d: d.predict(suite.good[:1]),
        lambda d: d.save(Path(tempfile.gettempdir()) / "never-written.safetensors"),
    ]
    for use in uses:
        try:
            use(suite.new())
        except NotFitted as error:
            _expect(".fit(" in str(error), f"the message does not name .fit: {error}")
        else:
            raise AssertionError("no NotFitted was raised")


def _fit_returns_self(suite: _Suite) -> None:
    _expect(suite.returned is suite.fitted, "fit returned something else")


def _same_seed_same_result(suite: _Suite) -> None:
    again = suite.new().fit(suite.good).predict(suite.held_out)
    first = suite.of_held_out
    _expect(bool((again.scores == first.scores).all()), "scores of two equal fits differ")
    _expect(all((a == b).all() for a, b in zip(again.maps, first.maps, strict=True)), "maps of two equal fits differ")


def _batch_does_not_matter(suite: _Suite) -> None:
    whole = suite.fitted.predict(suite.painted, batch=len(suite.painted))
    single = suite.fitted.predict(suite.painted, batch=1)
    allowed = suite.tolerance * float(np.abs(whole.scores).max())
    worst = float(np.abs(whole.scores - single.scores).max())
    _expect(worst <= allowed, f"scores differ by {worst:.2e}, allowed {allowed:.2e}")
    for a, b in zip(whole.maps, single.maps, strict=True):
        _expect(float(np.abs(a - b).max()) <= allowed, f"maps differ by more than {allowed:.2e}")


def _input_is_untouched(suite: _Suite) -> None:
    for found, images in ((suite.of_held_out, suite.held_out), (suite.of_painted, suite.painted)):  # judged by now
        _expect(len(found) == len(images), "some images were not judged")
    for images, before in zip((suite.good, suite.held_out, suite.painted), suite.before, strict=True):
        _expect(bool((images == before).all()), "the images were changed")


def _results_are_finite_and_shaped(suite: _Suite) -> None:
    found = suite.of_painted
    _expect(
        found.scores.shape == (len(suite.painted),) and found.scores.dtype == np.float32, "scores are not (N,) float32"
    )
    _expect(bool(np.isfinite(found.scores).all()), "a score is not finite")
    for i, map_ in enumerate(found.maps):
        _expect(map_.ndim == 2 and map_.dtype == np.float32, "a map is not (h, w) float32")
        _expect(bool(np.isfinite(map_).all()), "a map is not finite")
        _expect(found.map(i).shape == suite.painted.shape[1:3], "a full map has not the size of its image")


def _forward_agrees_with_predict(suite: _Suite) -> None:
    import torch

    prepared = torch.from_numpy(np.stack([suite.fitted.preprocess(image) for image in suite.painted]))
    with torch.no_grad():
        scores, maps = suite.fitted.cpu()(prepared)
    found = suite.of_painted
    allowed = 1e-3 * float(np.abs(found.scores).max())
    worst = float(np.abs(scores.numpy() - found.scores).max())
    _expect(worst <= allowed, f"scores of forward and predict differ by {worst:.2e}, allowed {allowed:.2e}")
    _expect(bool(np.abs(maps.numpy() - np.stack(found.maps)).max() <= allowed), "maps of forward and predict differ")


def _painted_defects_score_higher(suite: _Suite) -> None:
    good, bad = suite.of_held_out.scores, suite.of_painted.scores
    _expect(bool((bad > good).all()), f"painted {bad.round(3)} against the same images without {good.round(3)}")


def _a_broken_image_leaves_the_others(suite: _Suite) -> None:
    rows = [Row("array:a", pixels=suite.painted[0]), Row("no-such-file.png"), Row("array:b", pixels=suite.painted[1])]
    found = suite.fitted.predict(Table(rows))
    _expect([r.path for r in found.rows] == ["array:a", "array:b"], "the sound images are not all there, in order")
    _expect([f.path for f in found.failed] == ["no-such-file.png"], "the broken image is not named")
    alone = suite.of_painted.scores[:2]
    allowed = suite.tolerance * float(np.abs(alone).max())
    _expect(bool((np.abs(found.scores - alone) <= allowed).all()), "scores moved to other images")


def _fit_reads_no_test_image(suite: _Suite) -> None:
    rows = [Row(f"array:{i}", role="train", label=0, pixels=image) for i, image in enumerate(suite.good)]
    poison = [Row("no-such-file.png", role="test", label=1)]
    found = suite.new().fit(Table([*rows, *poison])).predict(suite.held_out)
    first = suite.of_held_out
    _expect(bool((found.scores == first.scores).all()), "a test row changed the fit")


def _save_and_load_are_bit_equal(suite: _Suite) -> None:
    with tempfile.TemporaryDirectory() as folder:
        loaded = load(suite.fitted.save(Path(folder) / "model.safetensors"))
    _expect(type(loaded) is suite.cls, f"a {type(loaded).__name__} came back")
    first, second = suite.of_painted, loaded.predict(suite.painted)
    _expect(bool((first.scores == second.scores).all()), "scores differ after loading")
    _expect(all((a == b).all() for a, b in zip(first.maps, second.maps, strict=True)), "maps differ after loading")
    _expect(loaded.calibration == suite.fitted.calibration, "the calibration differs after loading")
    _expect(_plain(loaded.configuration()) == _plain(suite.settings), "the settings differ after loading")


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no tuples."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}


CHECKS: dict[str, Callable[[_Suite], None]] = {
    "constructor stores only": _constructor_stores_only,
    "unfitted use names the remedy": _unfitted_use_names_the_remedy,
    "fit returns self": _fit_returns_self,
    "input is untouched": _input_is_untouched,
    "same seed, same result": _same_seed_same_result,
    "a batch of N is N batches of one": _batch_does_not_matter,
    "results are finite and shaped": _results_are_finite_and_shaped,
    "forward agrees with predict": _forward_agrees_with_predict,
    "painted defects score higher": _painted_defects_score_higher,
    "a broken image leaves the others": _a_broken_image_leaves_the_others,
    "fit reads no test image": _fit_reads_no_test_image,
    "save and load are bit-equal": _save_and_load_are_bit_equal,
}
