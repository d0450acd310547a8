"""The public conformance suite checks what every detector must do, whoever wrote it.

``check_detector(MyMethod(size=64))`` runs all checks, and raises AssertionError with the mode and the name of the check
that failed.
"""

from __future__ import annotations

import copy
import inspect
import pickle
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.ndimage import gaussian_filter

from pickglass.data import Row, Table, paint
from pickglass.detectors.modelfile import model_id
from pickglass.errors import InputError, NotFitted, UnknownName
from pickglass.methods import Detector, load
from pickglass.result import Prediction
from pickglass.runtime.compute import ComputeOptions

__all__ = ["CHECKS", "MODES", "check_detector", "textures"]

Images = npt.NDArray[Any]

MODES: Mapping[str, str] = {
    "plain": "whole images, with the engine that users get",
    "tiled": "two tiles, each with a head of its own",
    "shared heads": "three tiles that share two heads, so that one head has fewer tiles than the other",
    "region of interest": "two tiles, of which one lies wholly and one partly outside the region of interest",
    "batch of one": "one image at a time is read, in the fit too",
    "16 bit": "images of 16 bits a channel",
    "four threads": "four threads that call one detector at the same time",
    "copied": "copies and pickles of a detector that has judged images",
}
"""The modes of :func:`check_detector` and what each of them is."""

_TILED = ("tiled", "shared heads", "region of interest")


def check_detector(
    detector: Detector, *, modes: Sequence[str] | None = None, tolerance: float = 1e-4, n_images: int = 24
) -> list[str]:
    """Run every check on detectors of the same class and settings.

    Args:
        detector: unfitted; it is not changed. Small settings make the suite quick, e.g. ``size=64`` and the method's
            ``quick_settings``.
        modes: those of :data:`MODES` to check; None: all, but for those that tile if the detector is tiled already.
        tolerance: allowed difference between two ways to compute the same, relative to the largest score.
        n_images: good images to fit on, at least 8.

    Returns:
        The names of the checks, all passed, each as ``"mode: check"``.

    Raises:
        AssertionError: a check failed; the message starts with its mode and name.
        InputError: a mode that tiles, of a detector that is tiled already.

    Example:
        ``check_detector(MyMethod(size=64), modes=["plain", "tiled"])``
    """
    tiled = detector.tiling is not None
    chosen = [mode for mode in MODES if not (tiled and mode in _TILED)] if modes is None else list(modes)
    for mode in chosen:
        if mode not in MODES:
            raise UnknownName("mode of check_detector", mode, MODES)
        if tiled and mode in _TILED:
            raise InputError(f"modes={chosen!r}: the detector is tiled already, {mode!r} would tile it: leave it out")
    passed = []
    with tempfile.TemporaryDirectory() as folder:
        suite = _Suite(detector, tolerance, n_images, Path(folder))
        for mode, name in [(of_mode, check) for of_mode in chosen for check in CHECKS[of_mode]]:
            try:
                CHECKS[mode][name](suite)
            except Exception as error:  # whatever a method may raise, say which check it was
                kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
                raise AssertionError(f"{mode}: {name}: {kind}{error}") from error
            passed.append(f"{mode}: {name}")
    return passed


def textures(n: int, side: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Make good images of a rough surface: (n, side, side, 3) uint8, reproducible."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(n, side, side))
    fine, coarse = gaussian_filter(noise, (0, 1, 1)), gaussian_filter(noise, (0, 4, 4))
    grey = 128 + 12 * fine / fine.std() + 8 * coarse / coarse.std()
    return np.repeat(grey.clip(0, 255).astype(np.uint8)[..., None], 3, axis=3)


class _Suite:
    """The images, the detectors fitted on them when first asked for, and their scores: all that the checks share."""

    def __init__(self, detector: Detector, tolerance: float, n_images: int, folder: Path) -> None:
        self.settings = detector.configuration()
        self.cls = type(detector)
        self.tolerance = tolerance
        self.folder = folder
        self.input_size = detector.input_size
        side = 3 * max(detector.input_size) // 2  # not the input size: resizing is part of the job
        self.good = textures(n_images, side)
        self.few = self.good[:5]  # for fits that are only to be sound
        self.held_out = textures(4, side, seed=1)
        rng = np.random.default_rng(2)
        self.painted = np.stack([paint(image, "hole", side / 6, rng, contrast=2.0).image for image in self.held_out])
        self.before = [images.copy() for images in (self.good, self.held_out, self.painted)]

    def new(self) -> Detector:
        return self.cls.configured(self.settings)

    @cached_property
    def _fit(self) -> tuple[Detector, Detector]:
        detector = self.new()
        return detector, detector.fit(self.good)

    @property
    def fitted(self) -> Detector:
        return self._fit[0]

    @property
    def returned(self) -> Detector:
        return self._fit[1]

    @cached_property
    def again(self) -> Detector:
        """The detector fitted with the same seed on rows, among which is a test row that cannot be read."""
        rows = [Row(f"array:{i}", role="train", label=0, pixels=image) for i, image in enumerate(self.good)]
        return self.new().fit(Table([*rows, Row("no-such-file.png", role="test", label=1)]))

    @cached_property
    def of_held_out(self) -> Prediction:
        return self.fitted.predict(self.held_out)

    @cached_property
    def of_painted(self) -> Prediction:
        return self.fitted.predict(self.painted)

    def in_tiles(self, tiles: int, **settings: Any) -> Detector:
        """Make an unfitted detector of so many tiles side by side, each as large as the network's input."""
        h, w = self.input_size
        return self.new().tiled(size=(h, tiles * w), tile=(h, w), stride=(h, w), **settings)

    @cached_property
    def tiled(self) -> Detector:
        return self.in_tiles(2).fit(_wide(self.good, 2), engine="torch")

    @cached_property
    def shared(self) -> Detector:
        return self.in_tiles(3, heads=2).fit(_wide(self.few, 3), engine="torch")

    @cached_property
    def within_roi(self) -> Detector:
        return self.in_tiles(2).fit(self.with_roi(_wide(self.few, 2), "train"), engine="torch")

    def with_roi(self, images: Images, role: Literal["train", "test"]) -> Table:
        """Make rows whose region of interest is their left three eighths."""
        region = np.zeros(images.shape[1:3], np.uint8)
        region[:, : 3 * images.shape[2] // 8] = 255
        path = self.folder / "roi.png"
        Image.fromarray(region).save(path)
        return Table(
            [Row(f"array:{role}:{i}", role=role, label=0, pixels=x, roi=str(path)) for i, x in enumerate(images)]
        )

    @cached_property
    def one_at_a_time(self) -> Detector:
        return self.new().fit(self.few, batch=1, workers=1, engine="torch")

    @cached_property
    def of_16_bit(self) -> Detector:
        return self.new().fit(_in_16_bit(self.few), engine="torch")


def _wide(images: Images, tiles: int) -> Images:
    """Put images beside turned-over copies of themselves, so that no two tiles look the same."""
    return np.concatenate([images, images[:, ::-1], images[:, :, ::-1]][:tiles], axis=2)


def _in_16_bit(images: Images) -> Images:
    """Return the same images in 16 bits: 255 becomes 65535."""
    return images.astype(np.uint16) * 257


# -- what a check says -------------------------------------------------------------------------------------------------


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def _expect_alike(a: Prediction, b: Prediction, tolerance: float, what: str) -> None:
    """Scores and maps of two predictions differ by at most the tolerance, relative to the largest score."""
    _expect(len(a) == len(b), f"{len(a)} images were judged, then {len(b)}: {what}")
    allowed = tolerance * float(np.abs(a.scores).max())
    worst = float(np.abs(a.scores - b.scores).max())
    _expect(worst <= allowed, f"scores differ by {worst:.2e}, allowed are {allowed:.2e}: {what}")
    worst = max(float(np.abs(m - n).max()) for m, n in zip(a.maps, b.maps, strict=True))
    _expect(worst <= allowed, f"maps differ by {worst:.2e}, allowed are {allowed:.2e}: {what}")


def _expect_sound(found: Prediction, images: Images) -> None:
    """Scores and maps are finite, of the promised types and shapes."""
    _expect(not found.failed, f"images could not be judged: {found.failed}")
    _expect(found.scores.shape == (len(images),) and found.scores.dtype == np.float32, "scores are not (N,) float32")
    _expect(bool(np.isfinite(found.scores).all()), f"scores are not finite: {found.scores}")
    for i, map_ in enumerate(found.maps):
        _expect(map_.ndim == 2 and map_.dtype == np.float32, "a map is not (h, w) float32")
        _expect(bool(np.isfinite(map_).all()), f"the map of image {i} is not finite")
        _expect(found.map(i).shape == images.shape[1:3], "a full map has not the size of its image")


def _expect_saved_whole(suite: _Suite, detector: Detector, images: Images) -> None:
    """A saved and loaded detector gives bit for bit the same scores."""
    loaded = load(detector.save(suite.folder / "model.safetensors"))
    _expect(type(loaded) is type(detector), f"a {type(loaded).__name__} came back from the file")
    engine: Literal["torch", "auto"] = "torch" if detector.provenance.engine == "torch" else "auto"
    _expect_alike(detector.predict(images, engine=engine), loaded.predict(images, engine=engine), 0.0, "after loading")
    _expect(loaded.calibration == detector.calibration, "the calibration differs after loading")
    _expect(loaded.model_id() == model_id(loaded) == model_id(detector), "the model's id differs after loading")
    _expect(loaded.history == detector.history != (), "the history differs after loading")
    _expect(_plain(loaded.configuration()) == _plain(detector.configuration()), "the settings differ after loading")


def _plain(settings: dict[str, Any]) -> Any:
    """Return settings as JSON gives them back, which knows no tuples."""
    import json

    return json.loads(json.dumps(settings))


# -- plain -------------------------------------------------------------------------------------------------------------


def _constructor_stores_only(suite: _Suite) -> None:
    before = str(np.random.get_state())
    detector = suite.new()
    names = [name for name in inspect.signature(suite.cls.__init__).parameters if name != "self"]
    for name in names:
        _expect(getattr(detector, name) is suite.settings[name], f"{name} was not stored as given")
    _expect(detector.extractor is None and not list(detector.parameters()), "the constructor already built a network")
    _expect(str(np.random.get_state()) == before, "the constructor drew random numbers")


def _answers_what_others_ask(suite: _Suite) -> None:
    """A study asks for work units, the advisor for quick settings, and ``--preset auto`` for what it may try."""
    detector, known = suite.new(), inspect.signature(suite.cls.__init__).parameters
    units = detector.work_units(10)
    _expect((units > 0) == detector.trains, f"work_units(10) is {units}: positive if, and only if, the method trains")
    suite.cls.configured({**suite.settings, **suite.cls.quick_settings(10, 64)})
    for name, values in suite.cls.tunable().items():
        _expect(name in known, f"tunable() names {name!r}, which is no setting")
        _expect(len(values) > 0, f"tunable() gives no value for {name!r}")


def _unfitted_use_names_the_remedy(suite: _Suite) -> None:
    uses: list[Callable[[Detector], object]] = [
        lambda d: d.predict(suite.good[:1]),
        lambda d: d.save(suite.folder / "never-written.safetensors"),
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


def _input_is_untouched(suite: _Suite) -> None:
    for found, images in ((suite.of_held_out, suite.held_out), (suite.of_painted, suite.painted)):  # judged by now
        _expect(len(found) == len(images), "some images were not judged")
    for images, before in zip((suite.good, suite.held_out, suite.painted), suite.before, strict=True):
        _expect(bool((images == before).all()), "the images were changed")


def _fit_reads_no_test_image(suite: _Suite) -> None:
    _expect(suite.again.provenance.n_fit == suite.fitted.provenance.n_fit, "a test row was counted in the fit")


def _same_seed_same_result(suite: _Suite) -> None:
    _expect_alike(suite.of_held_out, suite.again.predict(suite.held_out), 0.0, "of two fits with the same seed")


def _batch_does_not_matter(suite: _Suite) -> None:
    single = suite.fitted.predict(suite.painted, batch=1)
    _expect_alike(suite.of_painted, single, suite.tolerance, "of a batch and of its images one by one")


def _results_are_finite_and_shaped(suite: _Suite) -> None:
    _expect_sound(suite.of_painted, suite.painted)


def _forward_agrees_with_predict(suite: _Suite) -> None:
    import torch

    prepared = torch.from_numpy(np.stack([suite.fitted.preprocess(image) for image in suite.painted]))
    with torch.no_grad():
        scores, maps = suite.fitted.cpu()(prepared)
    found = suite.of_painted
    allowed = 1e-3 * float(np.abs(found.scores).max())
    worst = float(np.abs(scores.numpy() - found.scores).max())
    _expect(worst <= allowed, f"scores of forward and predict differ by {worst:.2e}, allowed are {allowed:.2e}")
    _expect(bool(np.abs(maps.numpy() - np.stack(found.maps)).max() <= allowed), "maps of forward and predict differ")


def _painted_defects_score_higher(suite: _Suite) -> None:
    good, bad = suite.of_held_out.scores, suite.of_painted.scores
    # a quick training leaves room for an image that does not follow, on this machine or on another
    seen = float((bad > good).mean()) >= 0.75 and float(bad.mean()) > float(good.mean())
    _expect(seen, f"painted {bad.round(3)} against the same images without {good.round(3)}")


def _a_broken_image_leaves_the_others(suite: _Suite) -> None:
    rows = [Row("array:a", pixels=suite.painted[0]), Row("no-such-file.png"), Row("array:b", pixels=suite.painted[1])]
    found = suite.fitted.predict(Table(rows))
    _expect([r.path for r in found.rows] == ["array:a", "array:b"], "the sound images are not all there, in order")
    _expect([f.path for f in found.failed] == ["no-such-file.png"], "the broken image is not named")
    alone = suite.of_painted.scores[:2]
    allowed = suite.tolerance * float(np.abs(alone).max())
    _expect(bool((np.abs(found.scores - alone) <= allowed).all()), "scores moved to other images")


def _save_and_load_are_bit_equal(suite: _Suite) -> None:
    _expect_saved_whole(suite, suite.fitted, suite.painted)


# -- tiles -------------------------------------------------------------------------------------------------------------


def _tiles_see_defects(suite: _Suite) -> None:
    images = _wide(suite.painted, 2)
    found = suite.tiled.predict(images, engine="torch")
    _expect_sound(found, images)
    good = suite.tiled.predict(_wide(suite.held_out, 2), engine="torch").scores
    _expect(bool(found.scores.mean() > good.mean()), f"painted {found.scores.round(3)} against {good.round(3)} without")


def _tiles_are_saved(suite: _Suite) -> None:
    _expect_saved_whole(suite, suite.tiled, _wide(suite.painted[:2], 2))


def _shared_heads_are_sound(suite: _Suite) -> None:
    images = _wide(suite.painted[:2], 3)
    _expect_sound(suite.shared.predict(images, engine="torch"), images)


def _shared_heads_are_saved(suite: _Suite) -> None:
    _expect_saved_whole(suite, suite.shared, _wide(suite.painted[:2], 3))


def _outside_the_region_nothing_counts(suite: _Suite) -> None:
    images = _wide(suite.painted[:2], 2)
    altered = images.copy()
    outside = 5 * images.shape[2] // 8  # well inside the tile of which nothing counts, for resizing mixes its border
    altered[:, :, outside:] = 255 - altered[:, :, outside:]
    found = suite.within_roi.predict(suite.with_roi(images, "test"), engine="torch")
    _expect_sound(found, images)
    other = suite.within_roi.predict(suite.with_roi(altered, "test"), engine="torch")
    _expect_alike(found, other, suite.tolerance, "of images that differ outside of the region of interest")


def _a_region_is_saved(suite: _Suite) -> None:
    _expect_saved_whole(suite, suite.within_roi, _wide(suite.painted[:2], 2))


# -- what an explanation asks ----------------------------------------------------------------------------------------


def _expect_explicable(detector: Detector, images: Images) -> None:
    """What each level adds is a map of its own, and patches that are remembered come from images that were learned."""
    import torch

    origin = detector.provenance
    learned = len(origin.image_names or ())
    most = origin.n_fit + origin.n_validate  # a part of a combination may learn the images for validation, too
    _expect(origin.n_fit <= learned <= most, f"{learned} names of images, but {origin.n_fit} to {most} were learned")
    for loaded in detector.loader(ComputeOptions(engine="torch")).batches(detector._rows(images)):
        batch = loaded.batch
        if batch is None:
            raise AssertionError("no image was read")
        with torch.no_grad():
            scores, maps = detector.score(batch)
            parts = detector.level_maps(batch)
        for name, part in parts.items():
            _expect(part.shape == maps.shape, f"level_maps: {name!r} is {tuple(part.shape)}, maps {tuple(maps.shape)}")
            _expect(bool(torch.isfinite(part).all()), f"level_maps: {name!r} is not finite")
        turns = len(detector.quarter_turns) * (1 if detector.tiles is None else detector.tiles.per_head)
        spots = turns * maps.shape[2] * maps.shape[3]
        for head in range(scores.shape[1]):
            near = detector.neighbours(batch, (0, head, maps.shape[2] - 1, 0), 3)
            distances = [one.distance for one in near]
            _expect(distances == sorted(distances), f"neighbours: the nearest does not come first: {distances}")
            known = all(0 <= one.image < learned and 0 <= one.spot < spots for one in near)
            _expect(known, f"neighbours: of {learned} images with {spots} spots: {near}")


def _is_explicable(suite: _Suite) -> None:
    _expect_explicable(suite.fitted, suite.painted)


def _tiles_are_explicable(suite: _Suite) -> None:
    _expect_explicable(suite.tiled, _wide(suite.painted[:2], 2))


def _shared_heads_are_explicable(suite: _Suite) -> None:
    _expect_explicable(suite.shared, _wide(suite.painted[:2], 3))


def _a_region_is_explicable(suite: _Suite) -> None:
    _expect_explicable(suite.within_roi, _wide(suite.painted[:2], 2))


# -- other ways to read ------------------------------------------------------------------------------------------------


def _one_image_at_a_time(suite: _Suite) -> None:
    _expect_sound(suite.one_at_a_time.predict(suite.painted, batch=1, engine="torch"), suite.painted)


def _sixteen_bits_say_the_same(suite: _Suite) -> None:
    h, w = suite.input_size
    images = suite.painted[:, :h, :w]  # resizing would round 8 bits otherwise
    found = suite.fitted.predict(images)
    _expect_alike(
        found, suite.fitted.predict(_in_16_bit(images)), suite.tolerance, "of images and of the same in 16 bits"
    )


def _a_fit_on_16_bits(suite: _Suite) -> None:
    _expect_sound(suite.of_16_bit.predict(_in_16_bit(suite.painted), engine="torch"), suite.painted)


# -- one detector, many callers ----------------------------------------------------------------------------------------


def _threads_get_their_own_scores(suite: _Suite) -> None:
    images = [*suite.held_out, *suite.painted] * 3
    expected = [*suite.of_held_out.scores, *suite.of_painted.scores] * 3

    def judged(image: Images) -> float:
        return float(suite.fitted.predict([image]).scores[0])

    with ThreadPoolExecutor(4) as threads:
        scores = np.array(list(threads.map(judged, images)))
    allowed = suite.tolerance * float(np.abs(expected).max())
    wrong = int((np.abs(scores - np.array(expected)) > allowed).sum())
    _expect(wrong == 0, f"{wrong} of {len(images)} scores are those of other images or of none")


def _copies_say_the_same(suite: _Suite) -> None:
    images, said = suite.painted, suite.of_painted  # judged by now: the engine holds what cannot be copied
    copied = copy.deepcopy(suite.fitted)
    pickled = pickle.loads(pickle.dumps(suite.fitted))
    _expect_alike(said, copied.predict(images), 0.0, "after the detector was copied")
    _expect_alike(said, suite.fitted.predict(images), 0.0, "of the original, after it was copied")
    in_torch = suite.fitted.predict(images, engine="torch")
    _expect_alike(in_torch, pickled.predict(images, engine="torch"), 0.0, "after the detector was pickled")


CHECKS: Mapping[str, Mapping[str, Callable[[_Suite], None]]] = {
    "plain": {
        "constructor stores only": _constructor_stores_only,
        "answers what others ask": _answers_what_others_ask,
        "unfitted use names the remedy": _unfitted_use_names_the_remedy,
        "fit returns self": _fit_returns_self,
        "input is untouched": _input_is_untouched,
        "fit reads no test image": _fit_reads_no_test_image,
        "same seed, same result": _same_seed_same_result,
        "a batch of N is N batches of one": _batch_does_not_matter,
        "results are finite and shaped": _results_are_finite_and_shaped,
        "forward agrees with predict": _forward_agrees_with_predict,
        "painted defects score higher": _painted_defects_score_higher,
        "a broken image leaves the others": _a_broken_image_leaves_the_others,
        "save and load are bit-equal": _save_and_load_are_bit_equal,
        "levels and neighbours are told": _is_explicable,
    },
    "tiled": {
        "tiles see defects": _tiles_see_defects,
        "save and load are bit-equal": _tiles_are_saved,
        "levels and neighbours are told": _tiles_are_explicable,
    },
    "shared heads": {
        "results are finite and shaped": _shared_heads_are_sound,
        "save and load are bit-equal": _shared_heads_are_saved,
        "levels and neighbours are told": _shared_heads_are_explicable,
    },
    "region of interest": {
        "outside of it nothing counts": _outside_the_region_nothing_counts,
        "save and load are bit-equal": _a_region_is_saved,
        "levels and neighbours are told": _a_region_is_explicable,
    },
    "batch of one": {"results are finite and shaped": _one_image_at_a_time},
    "16 bit": {
        "images in 16 bits get the same scores": _sixteen_bits_say_the_same,
        "a fit on 16 bits is sound": _a_fit_on_16_bits,
    },
    "four threads": {"each thread gets its own scores": _threads_get_their_own_scores},
    "copied": {"copies say the same": _copies_say_the_same},
}
"""The checks of each mode by their names."""
