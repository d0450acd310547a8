"""A fit has three stages: prepare the images, teach the method, calibrate its scores.

- :func:`prepare` checks the rows, divides them into roles, and gives the detector its backbone and its canvas.
- :func:`teach` shows the method its images: once each in a stream, and where it trains, from a cache over and over.
  Positions of tiles are taught together, or in groups where the memory has no room for all.
- :func:`calibrate` judges good images that were held back, or, where the method can, each training image as if it had
  been left out; their scores set the thresholds, and their maps say what is usual at each place and at each level.

Whoever wants to watch passes a :class:`FitObserver`.

Letters: T tiles, P positions that have a head of their own, d features.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pickglass.calibration import Calibration, usual_threshold
from pickglass.data import (
    Dataset,
    Decoded,
    Prepared,
    Preprocess,
    Row,
    Table,
    as_defects,
    as_table,
    check_defects,
    parse_size,
    short_names,
    split_roles,
)
from pickglass.data.images.decoder import Array, Picture, array_of, decode_pictures
from pickglass.detectors.loading import FeatureLoader, LoadedBatch, canvas_batch, on_device, silent
from pickglass.detectors.method import FitContext, Judged, Method
from pickglass.detectors.tiling import Tiles
from pickglass.errors import DataError, Failure, InputError
from pickglass.features.batch import Batch
from pickglass.features.cache import FeatureCache
from pickglass.features.extractor import FeatureExtractor
from pickglass.nn.maps import (
    LevelLine,
    PlaceSums,
    explained_by_place,
    level_lines,
    mean_of_highest,
    quiet_level,
)
from pickglass.nn.pooling import ChannelAverages
from pickglass.nn.training.loop import train_all
from pickglass.runtime.compute import ComputeOptions, Progress
from pickglass.runtime.provenance import common_roi

if TYPE_CHECKING:
    from pickglass.features.research.adaptation import AdaptationSettings, Good
    from pickglass.features.research.fusion import Fusion

__all__ = [
    "FitObserver",
    "FitPlan",
    "Judge",
    "TrainingImages",
    "adapt_backbone",
    "calibrate",
    "check_meaning",
    "checked",
    "defect_rows",
    "drawn_to_leave_out",
    "fit_and_validated",
    "good_rows",
    "judged_batch",
    "learn_fusion",
    "learning_all",
    "left_out_rows",
    "numbered",
    "peaks_of",
    "prepare",
    "teach",
]

_DESCRIBED = 16  # images that say which positions look alike
_HELD_BACK = 0.1  # of the images, for the thresholds, where the method cannot leave images out
_MOST_LEFT_OUT = 250  # images that are judged as if left out; 100 of 212 tiles did not show the level that all show
_ENOUGH = 10  # units with fewer of which nothing is said about places, nor, of those with several images, about levels
_EXPLAINED = 0.3  # of the variance of the maps: places that explain less have no normal of their own
_LEVELLED = 0.05  # of the variance of the scores of one part: a level that explains less is left in

Size = tuple[int, int]


class FitObserver:
    """An observer watches a fit without being part of it; a subclass overrides the events that it wants."""

    def prepared(self, table: Table, loader: FeatureLoader, progress: Progress) -> Table:
        """Look at the rows before anything is learned, and return those to go on with."""
        return table

    def taught(self, rows: Sequence[Row], batch: Batch) -> None:
        """See a batch of the role ``fit`` as the method takes it in, each image once.

        Not called where tiles are taught in groups or share a head: then a batch is not one of whole images.
        """

    def judged(self, loaded: LoadedBatch, scores: Tensor) -> None:
        """See a batch that sets the thresholds, with its image scores (B,).

        An image of very many tiles comes with the means of its channels in place of a batch. The rows have the role
        ``calibrate``, or ``fit`` where each was judged as if it had been left out; then :meth:`settled` has the scores
        that count.
        """

    def settled(self, scores: Tensor) -> None:
        """See the image scores (N,) of all judged images that were learned, in the order in which they were judged.

        Each is compared with what is usual at its places and its level, which is known only when all are judged.
        """

    def fitted(self, method: Method) -> None:
        """Leave the outcome with the detector, whose fit is complete."""


@dataclass(frozen=True)
class FitPlan:
    """The plan says what a fit is asked for; the attributes are the arguments of :meth:`pickglass.Detector.fit`.

    ``before`` is the number of images that the method has learned already, on top of which it learns; 0: it is a fit.
    ``defects`` are bad parts, which a method may learn from and which never set the threshold.
    """

    validate: float
    calibrate: float | None
    seed: int
    memory_gb: float
    checkpoint: Path | None = None
    observers: Sequence[FitObserver] = ()
    progress: Progress = silent
    before: int = 0
    defects: Table = field(default_factory=Table)


@dataclass(frozen=True)
class TrainingImages:
    """The images that a fit may use.

    Attributes:
        table: rows of the roles fit, validate and calibrate.
        ready: images that are prepared already, by path, so that the fit need not decode them again.
        leaves_out: the method can judge each image that it learns as if it had been left out.
    """

    table: Table
    ready: Mapping[str, Decoded[Row, Prepared]]
    leaves_out: bool


# -- prepare -----------------------------------------------------------------------------------------------------------


def prepare(method: Method, data: Any, plan: FitPlan, compute: ComputeOptions) -> TrainingImages:
    """Check the images, divide them into roles, and give the method its backbone, its canvas and its tiles.

    Args:
        method: forgets what it had; ``extractor``, ``preprocess``, ``roi`` and ``tiles`` are set.
        data: as for :meth:`pickglass.Detector.fit`.
        plan: shares of the roles, seed and memory.
        compute: how many images are decoded at once.

    Raises:
        DataError: broken images (all are listed), a defective image among them, too few, blank images, or many copies
            of one.
        InputError: settings contradict each other, or ask for more good images than there are.
    """
    for part in (method, *method.components.values()):
        _ = part.places_matter, part.level_matters  # contradictions are refused
        part.check_smoothing()
    table = good_rows(data)
    if plan.defects:
        check_defects(plan.defects, table, compute.workers, compute.max_pixels)
        _check_marked(method, plan.defects)
    asked = (method.backbone, method.read_layers, method.weights, plan.seed, method.scales, method.strides)
    if method.extractor is None or not method.extractor.is_still(*asked):  # otherwise its engine is ready, too
        method.extractor = FeatureExtractor(*asked)
    preprocess = None if parse_size(method.size).size is None else _canvas(method, [])
    sizes, ready = checked(table, preprocess, None, plan.memory_gb / 4, compute)
    method._preprocess = _canvas(method, sizes.values()) if preprocess is None else preprocess
    roi = common_roi(table, sizes, method.preprocess) if any(row.roi is not None for row in table) else None
    method.roi = None if roi is None else torch.from_numpy(roi)
    method.tiles = None if method.tiling is None else Tiles(method.tiling, method.input_size)
    method.fusion = None
    held_back = plan.calibrate or 0.0
    divided = split_roles(table, plan.validate, held_back, plan.seed)
    leaves_out = _can_leave_out(method, divided.role("fit"))
    if plan.calibrate is None and not leaves_out:
        held_back = _HELD_BACK
        divided = split_roles(table, plan.validate, held_back, plan.seed)
    table = divided
    _check_number(method, table, plan.validate > 0 and method.uses_validation, held_back > 0)
    for part in method.components.values():
        _check_enough(part, table, leaves_out or _can_leave_out(part, table.role("fit"), method))
    return TrainingImages(table, ready, leaves_out)


def _check_enough(part: Method, table: Table, leaves_out: bool) -> None:
    """Raise where there are too few good images to learn what is usual, which was asked for."""
    members = np.bincount(numbered(table.role("fit" if leaves_out else "validate")))
    for name, asked, least in (("place_scale", part.places_matter, 1), ("level_shift", part.level_matters, 2)):
        found = np.count_nonzero(members >= least)
        if asked and found < _ENOUGH:
            what = "images" if least == 1 else "parts of which there are several images (groups)"
            role = "to fit" if leaves_out else "to validate (validate)"
            raise InputError(
                f"{name}=True compares with what is usual among good images, and takes at least {_ENOUGH} {what} "
                f"{role}, but there are {found}: give more, or leave {name} out"
            )


def _canvas(method: Method, sizes: Iterable[Size]) -> Preprocess:
    """Choose the canvas for images of these sizes (H, W), which the backbone has to be able to read.

    Warns where the size that was asked for is not one of whole patches.
    """
    network = method.network
    preprocess = Preprocess.for_images(method.size, network.interpolation, sizes)
    if method.tiling is not None:  # it is the tiles that the network reads
        return preprocess
    fits = network.fitting(preprocess.size, up=preprocess.geometry in ("shorter", "native"))
    if fits != preprocess.size and parse_size(method.size).size is not None:
        (height, width), (h, w) = preprocess.size, fits
        warnings.warn(
            f"{method.backbone} cuts images into patches of {network.cells.patch} pixels: they are read at {h}x{w} "
            f"instead of {height}x{width} pixels (height x width)",
            UserWarning,
            stacklevel=4,
        )
    return replace(preprocess, size=fits)


def _can_leave_out(method: Method, rows: Table, whole: Method | None = None) -> bool:
    """Whether the method can judge each image that it learned as if it had been left out.

    What else learns from the images would have to leave them out, too: a fusion, an adapted backbone, heads that tiles
    share. Of a component of several it is ``whole`` that says so.
    """
    around = whole or method
    if type(method).score_left_out is Method.score_left_out or around.adapting is not None or around.fusing is not None:
        return False
    if around.tiles is not None and around.tiles.heads != around.tiles.n:
        return False
    return method.leaves_out(numbered(rows))


def learning_all(method: Method, table: Table) -> tuple[str, ...]:
    """Name the components that learn the images for validation, too, which only others beside them need.

    These are components that count, beside ones that train, and that can judge each image as if it had been left out:
    so what good images look like to them is still known.
    """
    parts = method.components
    if not table.role("validate") or len({part.trains for part in parts.values()}) < 2:
        return ()
    rows = fit_and_validated(table)
    return tuple(name for name, part in parts.items() if not part.trains and _can_leave_out(part, rows, method))


def left_out_rows(method: Method, leaves_out: bool, table: Table) -> Table:
    """Return the images of which some are judged as if left out, by the method or by a component; none: empty.

    Args:
        method: is to learn the images.
        leaves_out: the whole method can judge images that it has learned as if they had been left out.
        table: rows with their roles.
    """
    fit, parts = table.role("fit"), method.components.values()
    if learning_all(method, table):
        return fit_and_validated(table)
    return fit if leaves_out or (len(parts) > 1 and any(_can_leave_out(p, fit, method) for p in parts)) else Table([])


def fit_and_validated(table: Table) -> Table:
    """Return the images to fit and then those for validation."""
    return table.role("fit") + table.role("validate")


def numbered(rows: Table) -> tuple[int, ...]:
    """Number the units of the rows: images of one part or roll have one number."""
    numbers: dict[str, int] = {}
    return tuple(numbers.setdefault(row.unit, len(numbers)) for row in rows)


def good_rows(data: Any) -> Table:
    """Return the rows that a fit may learn from."""
    if isinstance(data, Dataset):
        data = data.train
    table = data if isinstance(data, Table) else as_table(data, role="train")
    table = table.where(lambda row: row.role != "test")
    # a validation split may hold labelled defects, for thresholds that need them; nothing is fitted on those
    table = table.where(lambda row: row.label != 1 or row.role != "validate")
    defective = [Failure(row.path, f"defective ({row.defect})") for row in table if row.label == 1]
    if defective:
        raise DataError(f"{len(defective)} training images are marked defective; fit takes good ones:", defective)
    if not table:
        raise DataError("there is no good image to learn from: expected rows of another role than 'test'")
    return table


def defect_rows(data: Any, defects: Any) -> Table:
    """Return the bad parts that a fit is shown: those handed over, and those that a table has for validation."""
    if isinstance(data, Dataset):
        data = data.table
    known = data.where(lambda row: row.label == 1 and row.role == "validate") if isinstance(data, Table) else Table()
    return known if defects is None else known + as_defects(defects)


def _check_marked(method: Method, defects: Table) -> None:
    """Raise where a method would learn from tiles of which nobody knows whether they show the defect."""
    unmarked = [row.path for row in defects if not row.has_mask]
    if unmarked and method.learns_defects and method.tiling is not None:
        raise InputError(
            f"{len(unmarked)} known defects have no mask, e.g. {unmarked[0]!r}, so it is not known which of the tiles "
            "show them: give their masks, leave them out, or fit without tiles"
        )


def checked(
    table: Table,
    preprocess: Preprocess | None,
    roi: np.ndarray | None,
    memory_gb: float,
    compute: ComputeOptions,
) -> tuple[dict[str, Size], dict[str, Decoded[Row, Prepared]]]:
    """Read each image once: its size (H, W) by path, and prepared, by path, as many as the memory holds.

    Args:
        table: good images.
        preprocess: how they are prepared; None: their sizes have a say in that, and none can be prepared yet.
        roi: (H, W) bool on the canvas, for rows without a region of interest; None: everything counts.
        memory_gb: what prepared images may take.
        compute: how many are decoded at once.

    Raises:
        DataError: broken images (all are listed), blank images, or copies of one.
    """
    room = memory_gb * 1e9  # bytes
    variety = _Variety()

    def prepare_one(image: Picture, row: Row) -> Prepared | None:
        variety.see(image)
        return None if preprocess is None else preprocess.prepared(image, row, roi)

    sizes: dict[str, Size] = {}
    ready: dict[str, Decoded[Row, Prepared]] = {}
    failures: list[Failure] = []
    for item in decode_pictures(table, prepare_one, compute.workers, max_pixels=compute.max_pixels):
        sizes[item.row.path] = item.size
        if item.error is not None:
            failures.append(Failure(item.row.path, item.error))
        elif item.value is not None and item.value.nbytes <= room:
            room -= item.value.nbytes
            ready[item.row.path] = Decoded(item.row, item.value, item.size)
    if failures:
        raise DataError(f"{len(failures)} of {len(table)} training images cannot be read:", failures)
    variety.check(len(table))
    return sizes, ready


class _Variety:
    """Whether the images that a fit is given show anything, and whether any two of them differ.

    No more images are compared than it takes to know. The threads that decode call :meth:`see`.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._first: Array | None = None
        self._shows = self._differs = False

    def see(self, picture: Picture) -> None:
        """Compare an image with itself and with the first one."""
        if self._shows and self._differs:
            return
        image = array_of(picture)  # (H, W) or (H, W, 3)
        with self._lock:
            self._shows = self._shows or bool((image != image[0, 0]).any())
            if self._first is None:
                self._first = image
            elif not self._differs:
                self._differs = not np.array_equal(image, self._first)

    def check(self, n_images: int) -> None:
        """Raise where nothing can be learned from these images."""
        if not self._shows:
            raise DataError(
                f"the good images are blank: within each of the {n_images} all pixels have one value. The lens may "
                "have been covered, the exposure too short or too long: give images that show the part"
            )
        if n_images > 1 and not self._differs:
            raise DataError(
                f"the {n_images} good images are one and the same picture, so nothing tells how good parts differ: "
                "give images of different parts"
            )


def _check_number(method: Method, table: Table, validates: bool, holds_back: bool) -> None:
    """Raise where there are too few images for the roles that the method and the plan need."""
    if len(table.role("fit")) >= method.fewest_images and (table.role("validate") or not validates):
        return
    parts = [f"{method.fewest_images} to fit"]
    parts += ["1 to validate"] if validates else []
    parts += ["1 for the thresholds"] if holds_back else []
    needed = method.fewest_images + len(parts) - 1
    have = len({row.unit for row in table})
    raise DataError(
        f"{type(method).__name__} needs at least {needed} good images ({', '.join(parts)}), but the number given is "
        f"{have} (images of one group count as one): give more"
    )


# -- research: a backbone that is fine-tuned, layers that are fused ----------------------------------------------------


def adapt_backbone(settings: AdaptationSettings, loader: FeatureLoader, table: Table, plan: FitPlan) -> dict[str, Any]:
    """Fine-tune the loader's backbone in place on images of the role ``fit``, judged by those of ``validate``.

    Args:
        settings: which stages, and how long; at most so many of the images, or of their tiles, are drawn.
        loader: reads the rows; its backbone is changed.
        table: rows with their roles.
        plan: seed and progress.

    Returns:
        What :func:`pickglass.features.research.adaptation.adapt` tells.
    """
    from pickglass.features.research.adaptation import adapt

    fit, held = (_as_seen(loader, table.role(role), settings.images, plan.seed) for role in ("fit", "validate"))
    return adapt(loader.engine.extractor, settings, fit, held, seed=plan.seed, progress=plan.progress)


def learn_fusion(fusion: Fusion, loader: FeatureLoader, table: Table, progress: Progress) -> None:
    """Show a fusion the images of the role ``fit`` that it learns from.

    Args:
        fusion: takes in the levels of all positions alike.
        loader: reads the rows, their levels not fused.
        table: rows with their roles.
        progress: called with (stage, done, total).
    """
    fusion.to(loader.engine.device)
    if fusion.wants_images:
        for batch in _batches(loader, table.role("fit"), progress):
            fusion.observe(batch)
    fusion.settle()


def _as_seen(loader: FeatureLoader, table: Table, most: int, seed: int) -> Good:
    """Read at most so many images as the network sees them, evenly spread over the rows; tiles are drawn from all."""
    from pickglass.features.research.adaptation import Good

    rows = Table([table[i * len(table) // most] for i in range(most)]) if len(table) > most else table
    plain = loader.plain()
    total = len(rows) * (plain.tiles.n if plain.tiles else 1)
    drawn = np.zeros(total, np.bool_)
    drawn[np.random.default_rng(seed).permutation(total)[:most]] = True
    images, keeps, begin = [], [], 0
    for batch in _batches(plain, rows, silent):
        if batch.images is None:
            raise RuntimeError("a loader of images gave none")
        seen = batch.images.flatten(0, 1).cpu()  # (B T, 3, h, w)
        size = (len(seen), *seen.shape[2:])
        keep = torch.ones(size, dtype=torch.bool) if batch.keep is None else batch.keep.flatten(0, 1).cpu()
        some = torch.from_numpy(drawn[begin : begin + len(seen)]) & keep.flatten(1).any(1)
        begin += len(seen)
        images.append(seen[some])
        keeps.append(keep[some])
    if not images:
        return Good(torch.zeros(0, 3, 1, 1), None)
    kept = torch.cat(keeps)
    return Good(torch.cat(images), None if bool(kept.all()) else kept)


# -- teach -------------------------------------------------------------------------------------------------------------


def teach(method: Method, loader: FeatureLoader, table: Table, plan: FitPlan, fingerprint: str) -> dict[str, Any]:
    """Teach a method its images, all positions at once or group by group.

    Args:
        method: takes in the rows of the role ``fit``, then trains its phases, then takes in those of ``validate``.
        loader: reads the rows.
        table: rows with their roles.
        plan: seed, memory, checkpoint, observers and progress.
        fingerprint: names all that the training depends on; a checkpoint with another one is refused.

    Returns:
        What ``end_fit`` returned and, under ``training``, the course of each phase; where positions are taught in
        several groups, under ``groups`` those of each.
    """
    views = 1 if method.trains else len(method.quarter_turns) * len(method.brightnesses)
    n_fit, n_validate = len(table.role("fit")), len(table.role("validate"))
    units = numbered(table.role("fit"))
    context = FitContext(
        n_fit * views,
        method.level_shapes(),
        1,
        plan.seed,
        plan.memory_gb,
        plan.progress,
        n_validate=n_validate,
        units=units,
        before=plan.before * views,
        n_defects=len(plan.defects) if plan.defects and method.learns_defects else 0,
        learn_all=learning_all(method, table),
        units_of_all=numbered(fit_and_validated(table)),
    )
    tiles = loader.tiles
    if tiles is None:
        return _teach(method, loader, table, context, plan, fingerprint)
    _check_size(method, tiles, context)
    if tiles.heads not in (1, tiles.n) and not plan.before:
        tiles.assign(_mean_features(loader, table), context.seed)
    units = units if tiles.heads == tiles.n else ()  # heads that tiles share see each image several times
    n_images, before = (n * tiles.per_head for n in (context.n_images, context.before))
    context = replace(
        context,
        positions=tiles.heads,
        n_images=n_images,
        before=before,
        units=units,
        per_image=tiles.per_head,
        n_defects=context.n_defects * tiles.per_head,
    )
    groups = _groups(method, loader, table, context)
    if len(groups) == 1:
        watched = plan if tiles.heads == tiles.n else replace(plan, observers=())
        details = _teach(method, loader, table, context, watched, fingerprint)
    else:
        details = _teach_groups(method, loader, table, context, plan, fingerprint, groups)
    if tiles.settings.normalise == "position" and not plan.before:
        tiles.scale = _scales(method, loader, tiles, table)
    return details


def _checkpoint_of_group(checkpoint: Path, start: int) -> Path:
    """Name the file of a group of positions that is taught by itself; it stays until the model is saved."""
    return checkpoint.with_name(f"{checkpoint.stem}-{start}{checkpoint.suffix}")


def _teach_groups(
    method: Method,
    loader: FeatureLoader,
    table: Table,
    context: FitContext,
    plan: FitPlan,
    fingerprint: str,
    groups: Sequence[range],
) -> dict[str, Any]:
    """Teach one group of positions after the other, and put together what they learned."""
    details: list[dict[str, Any]] = []
    grown: list[dict[str, Tensor]] = []  # per group the tensors whose size the images decide
    learned = method.head_state()
    method.build(context.shapes, context.positions, context.seed)
    built = method.head_state()
    unwatched = replace(plan, observers=())
    for group in groups:
        part = method.clone()
        smaller = replace(context, positions=len(group), seed=context.seed + group.start, groups=len(groups))
        if plan.before:
            own = {name: tensor[group.start : group.stop] for name, tensor in learned.items()}
            part.go_on_from(own, context.shapes, len(group))
        own_file = None if plan.checkpoint is None else _checkpoint_of_group(plan.checkpoint, group.start)
        own_plan = replace(unwatched, checkpoint=own_file)
        details.append(_teach(part, loader.only(group), table, smaller, own_plan, f"{fingerprint} {group}"))
        grown.append({})
        for name, tensor in part.head_state().items():
            if name in built and built[name].shape[1:] == tensor.shape[1:]:
                built[name][group.start : group.stop] = tensor  # in place: networks are held once
            else:
                grown[-1][name] = tensor
    method.load_head_state({name: method.stacked(name, [part[name] for part in grown]) for name in grown[0]})
    method.to(loader.engine.device)
    return {"groups": details}


def _teach(
    method: Method, loader: FeatureLoader, table: Table, context: FitContext, plan: FitPlan, fingerprint: str
) -> dict[str, Any]:
    """Teach a method the positions that the loader reads."""
    if not context.before:
        method.build(context.shapes, context.positions, context.seed)
    method.to(loader.engine.device)
    if context.before:
        method.begin_update(context)
    else:
        method.begin_fit(context)
    if method.trains:
        return _train(method, loader, table, context, plan, fingerprint)
    for i, view in enumerate(itertools.product(method.quarter_turns, method.brightnesses)):
        watched = plan.observers if i == 0 else ()
        for batch in _batches(loader.changed(*view), table.role("fit"), context.progress, watched):
            method.observe(batch)
    if method.validates:
        for batch in _batches(loader, table.role("validate"), silent):
            method.observe_validation(batch)
    return method.end_fit()


def _train(
    method: Method, loader: FeatureLoader, table: Table, context: FitContext, plan: FitPlan, fingerprint: str
) -> dict[str, Any]:
    """Read each image once into a cache, and train the method's phases on what is cached."""
    fit, validate = table.role("fit"), table.role("validate")
    device = loader.engine.device
    many = context.n_images // len(fit)  # positions that share a head
    n_fit, n_validate = many * len(fit), many * len(validate)
    half_gb = context.memory_gb / 2  # divided among both caches
    with ExitStack() as stack:
        fit_cache, validate_cache = (
            stack.enter_context(FeatureCache(n, half_gb * n / (n_fit + n_validate))) for n in (n_fit, n_validate)
        )
        for batch in _batches(loader, fit, context.progress, plan.observers):
            if not context.before:
                method.observe(batch)
            fit_cache.add(batch)
        for batch in _batches(loader, validate, silent):
            if context.learn_all:
                method.observe_further(batch)
            validate_cache.add(batch)
        for batch, truth in _defect_batches(loader, plan.defects) if context.n_defects else ():
            method.observe_defects(batch, truth)
        phases = method.phases()
        if context.before:
            phases = [replace(phase, plan=phase.plan.further()) for phase in phases]
        histories = train_all(
            phases,
            lambda indices: on_device(fit_cache.read(indices), device),
            n_fit,
            (lambda indices: on_device(validate_cache.read(indices), device)) if validate else None,
            n_validate,
            seed=context.seed,
            device=device,
            progress=context.progress,
            checkpoint=plan.checkpoint,
            fingerprint=fingerprint,
        )
        method.eval()
        with torch.no_grad():
            for start in range(0, n_validate, loader.batch):
                indices = range(start, min(start + loader.batch, n_validate))
                method.observe_validation(on_device(validate_cache.read(indices), device, loader.engine))
    return {**method.end_fit(), "training": [history.to_json() for history in histories]}


def _batches(
    loader: FeatureLoader, rows: Table, progress: Progress, observers: Sequence[FitObserver] = ()
) -> Iterator[Batch]:
    """Yield the batches that a method reads of these rows; the observers see each before the method.

    Images of very many tiles come in parts, where nobody watches.
    """
    in_parts = loader.in_parts and not observers
    for loaded in loader.sound_batches(rows, progress, features=not in_parts):
        if loaded.batch is None:
            for value in loaded.values:
                yield from loader.parts_of(value)
        else:
            for observer in observers:
                observer.taught([item.row for item in loaded.items], loaded.batch)
            yield loaded.batch


def _defect_batches(loader: FeatureLoader, defects: Table) -> Iterator[tuple[Batch, Tensor | None]]:
    """Yield the batches that a method reads of known defects, with their masks (B, P, H, W); None: they have none."""
    for rows in (defects.where(lambda row: row.has_mask), defects.where(lambda row: not row.has_mask)):
        for loaded in loader.sound_batches(rows, silent):
            if loaded.batch is None:
                continue
            truth = None
            if rows[0].has_mask:
                masks = [(item.size, item.row.truth(item.size, loader.compute.max_pixels)) for item in loaded.items]
                placed = [np.asarray(loader.preprocess.kept(size, mask)) for size, mask in masks]
                whole = torch.from_numpy(np.stack(placed)).to(loader.engine.device)  # (B, H, W)
                blank = whole.new_zeros((len(whole), 3, *whole.shape[1:]), dtype=torch.float32)
                truth = canvas_batch(blank, whole, lambda _: (), ("images",), loader.tiles, loader.positions).keep
            yield loaded.batch, truth


# -- positions of tiles ------------------------------------------------------------------------------------------------


def _check_size(method: Method, tiles: Tiles, context: FitContext) -> None:
    """Raise where the model file would be too large; the remedy is fewer heads where they take less."""
    limit = tiles.settings.max_file_mb
    backbone = {} if method.extractor is None else method.extractor.state_dict()
    fixed: float = sum(t.numel() * t.element_size() for t in backbone.values()) / 1e6

    def size(heads: int) -> float:
        shared = replace(context, positions=heads, n_images=context.n_images * math.ceil(tiles.n / heads))
        return fixed + method.predicted_mb(shared)

    if size(tiles.heads) <= limit:
        return
    low, high = 0, tiles.heads  # the largest number that fits lies from low to below high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) <= limit else (low, middle)
    remedy = f"share heads among the tiles, heads={low}" if low else "let the method keep less, or lower size"
    raise InputError(
        f"{tiles.heads} heads for {tiles.n} tiles would make a model file of {size(tiles.heads):,.0f} MB, more than "
        f"max_file_mb={limit:g}: {remedy}, or raise max_file_mb"
    )


def _groups(method: Method, loader: FeatureLoader, table: Table, context: FitContext) -> list[range]:
    """Divide the positions into groups that are taught together."""
    tiles = loader.tiles
    if tiles is None or tiles.heads != tiles.n:
        return [range(context.positions)]
    at_once = tiles.settings.at_once
    if at_once is None and not method.trains:
        at_once = tiles.n
    elif at_once is None:
        cached = context.n_images * 4 * sum(math.prod(shape) for shape in context.shapes)  # bytes a position
        largest = max(cached, _training_bytes(method, loader, table, context))
        at_once = max(1, int(context.memory_gb / 2 * 1e9 // largest))
    return [range(i, min(i + at_once, tiles.n)) for i in range(0, tiles.n, at_once)]


def _training_bytes(method: Method, loader: FeatureLoader, table: Table, context: FitContext) -> int:
    """Measure the bytes that a training step of one position holds: what two images leave for the backward pass."""
    single = method.clone()
    single.build(context.shapes, 1, context.seed)
    single.to(loader.engine.device)
    single.begin_fit(replace(context, positions=1, n_defects=0))
    batch = next(_batches(loader.only(range(1)), table.role("fit")[:2], silent))
    batch = batch._replace(engine=None)  # as training has it, which runs in torch
    images = len(batch.levels[0] if batch.levels else batch.images)  # type: ignore[arg-type]
    known = {t.untyped_storage().data_ptr() for t in single.state_dict().values()}
    most = 0
    for phase in single.phases():
        phase.module.train()
        left: dict[int, int] = {}  # storage -> its bytes

        def keep(tensor: Tensor, left: dict[int, int] = left) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                left[storage.data_ptr()] = storage.nbytes()
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with torch.enable_grad(), hooks:
            loss = phase.loss(batch)  # held until its memory is counted
        weights = sum(p.numel() * p.element_size() for p in phase.module.parameters())
        # beside the weights their gradients, two moments and the best epoch's
        most = max(most, phase.plan.batch * sum(left.values()) // images + 5 * weights)
        del loss
    return most


def _mean_features(loader: FeatureLoader, table: Table) -> np.ndarray:
    """Average the features of each position over some training images: (T, d)."""
    tiles = loader.tiles
    if tiles is None:
        raise RuntimeError("without tiles there are no positions to describe")
    rows = table.role("fit")[:_DESCRIBED]
    means = [
        torch.cat([level.mean((0, 3, 4)) for level in batch.levels] or [batch.images.mean((0, 3, 4))], dim=1)  # type: ignore[union-attr]
        for batch in _batches(loader.only(range(tiles.n)), rows, silent)
    ]
    features: np.ndarray = torch.stack(means).mean(0).cpu().numpy()
    return features


def _scales(method: Method, loader: FeatureLoader, tiles: Tiles, table: Table) -> Tensor:
    """Return the median score of each position on the validation images: (T,)."""
    rows = table.role("validate")
    if not rows:
        raise InputError("normalise='position' takes its scales from validation images: give validate, e.g. 0.1")
    method.eval()
    with torch.no_grad():
        scores = [tiles.unfold(method.score(batch)[0]) for batch in _batches(loader, rows, silent)]
    values = torch.cat(scores)  # (N, T)
    scales = values.masked_fill(~torch.isfinite(values), torch.nan).nanmedian(0).values  # (T,)
    return scales.nan_to_num(1.0).clamp(min=torch.finfo(torch.float32).tiny)


# -- calibrate ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def calibrate(
    method: Method, loader: FeatureLoader, images: TrainingImages, plan: FitPlan
) -> tuple[Calibration, dict[str, Any]]:
    """Set the thresholds on good images, and learn from their maps what is usual at each place and at each level.

    Args:
        method: was taught; what is usual is left with it.
        loader: reads the rows.
        images: rows with their roles; where no image is held back or left out there are no thresholds, and a few
            fitted images are judged to see that their scores are numbers.
        plan: seed, observers and progress.

    Returns:
        The thresholds, and what is worth telling about ``places`` and about the ``level``: ``explained``, the share of
        the variance of the maps that the place explains, or of the scores of one part that the level explains, and
        whether it is ``used``; without an entry where nothing was looked at. Where a method has several components,
        that of each is under ``components``, beside what :meth:`Method.learn_mixing` tells.

    Raises:
        DataError: a score is no number, or all maps are one and the same value.
    """
    table = images.table
    fit, held = table.role("fit"), table.role("calibrate")
    judge = Judge(loader, plan)
    uses_left_out = images.leaves_out and not held and plan.calibrate is None
    compares = method.places_matter is not False or method.level_matters is not False or len(method.components) > 1
    parts, validated = list(method.components.values()), table.role("validate")
    learned = left_out_rows(method, images.leaves_out, table)
    able = parts if images.leaves_out else [part for part in parts if learned and _can_leave_out(part, learned, method)]
    known: dict[Method, Judged] = {}
    if able and (uses_left_out or compares):
        known = judge(able, *drawn_to_leave_out(learned, plan.seed), leave_out=True, watched=uses_left_out)
        for part, judged in known.items():
            check_meaning(part, judged)
    others = [part for part in parts if part not in able]
    if others and compares and len(set(numbered(validated))) >= _ENOUGH:
        known |= judge(others, validated)
    told: dict[str, Any] = {}
    for name, part in method.components.items():
        if part in known:
            own = told if part is method else told.setdefault("components", {}).setdefault(name, {})
            known[part] = _compared(part, known[part], own, loader.engine.device, part in able)
    told |= method.learn_mixing(known, judge, validated or held)
    if uses_left_out:
        good = method.mixed([known[part] for part in parts])
        for observer in plan.observers:
            observer.settled(good.scores)
    else:
        good = judge([method], held or fit[: loader.batch], watched=bool(held))[method]
        check_meaning(method, good, learned=not held)
        if not held:
            return usual_threshold([], []), told
    calibration = usual_threshold(
        good.scores.tolist(),
        peaks_of(good).tolist(),
        [row.group for row in good.rows],
        method.settings_digest(),
        short_names([row.path for row in good.rows]),
        "left out" if uses_left_out else "held back",
        monotone=method.falls_with_images and method.place_gain is None and method.level_line is None,
    )
    return calibration, told


def peaks_of(judged: Judged) -> Tensor:
    """Return the highest value of each map, (N,)."""
    return judged.maps.masked_fill(~judged.inside, -torch.inf).flatten(1).max(1).values


class Judge:
    """Taught methods judge good images.

    Args:
        loader, plan: as for :func:`calibrate`.
    """

    def __init__(self, loader: FeatureLoader, plan: FitPlan) -> None:
        self.loader, self.plan = loader, plan

    def __call__(
        self,
        methods: Sequence[Method],
        rows: Table,
        units: tuple[int, ...] | None = None,
        *,
        leave_out: bool = False,
        watched: bool = False,
    ) -> dict[Method, Judged]:
        """Let each of the methods judge images, which are read once.

        Args:
            methods: those that read the loader's batches.
            rows: images that can be read.
            units: the numbers of their units in the fit; None: numbered anew.
            leave_out: they were learned, and each is judged as if it had not been.
            watched: the observers see them, with the scores of the first method.
        """
        numbers = torch.tensor(numbered(rows) if units is None else units)
        parts: dict[Method, list[tuple[Tensor, Tensor, Tensor]]] = {method: [] for method in methods}
        whole = leave_out or not self.loader.in_parts
        done = 0
        for loaded in self.loader.sound_batches(rows, silent, features=whole):
            own = numbers[done : done + len(loaded.items)]
            for method in methods:
                loaded, (scores, maps, inside) = judged_batch(method, self.loader, loaded, own if leave_out else None)
                counting = torch.ones_like(maps, dtype=torch.bool) if inside is None else inside
                parts[method].append((scores.cpu(), maps.cpu(), counting.cpu()))
            done += len(loaded.items)
            self.plan.progress("judging good images", done, len(rows))
            for observer in self.plan.observers if watched else ():
                observer.judged(loaded, parts[methods[0]][-1][0])
        joined = {method: map(torch.cat, zip(*of, strict=True)) for method, of in parts.items()}
        return {method: Judged(rows, numbers, *of) for method, of in joined.items()}


def judged_batch(
    method: Method, loader: FeatureLoader, loaded: LoadedBatch, units: Tensor | None = None
) -> tuple[LoadedBatch, tuple[Tensor, Tensor, Tensor | None]]:
    """Judge what was loaded as :meth:`Method.judged` does, from parts of each image where it was loaded so.

    Returns:
        What was loaded, with its ``means`` if it was read in parts; and scores, maps, and what counts of them.
    """
    if loaded.batch is not None:
        return loaded, method.judged(loaded.batch, units)
    averages = [ChannelAverages() for _ in loaded.values]

    def parts(value: Prepared, averages: ChannelAverages) -> Iterator[Batch]:
        for part in loader.parts_of(value):
            averages.add(part.levels, part.keep)
            yield part

    answers = [method.judged_in_parts(parts(*both)) for both in zip(loaded.values, averages, strict=True)]
    scores, maps, insides = zip(*answers, strict=True)
    counting = [torch.ones_like(m, dtype=torch.bool) if i is None else i for m, i in zip(maps, insides, strict=True)]
    means = torch.cat([own.means() for own in averages])
    return loaded._replace(means=means), (torch.cat(scores), torch.cat(maps), torch.cat(counting))


def drawn_to_leave_out(fit: Table, seed: int) -> tuple[Table, tuple[int, ...]]:
    """Draw the training images that are judged as if left out, with the numbers of their units; units are whole."""
    numbers = numbered(fit)
    members = np.bincount(numbers)
    order = np.random.default_rng(seed).permutation(len(members))
    taken = order[np.cumsum(members[order]) - members[order] < _MOST_LEFT_OUT]
    some = [i for i in range(len(fit)) if numbers[i] in set(taken.tolist())]
    return Table([fit[i] for i in some]), tuple(numbers[i] for i in some)


def _compared(method: Method, known: Judged, told: dict[str, Any], device: str, left_out: bool) -> Judged:
    """Learn from good images what is usual at each place and at each level, and leave it with the method.

    Args:
        method: gets what matters.
        known: images that no part of the method knows, judged by it alone.
        told: gets what :func:`calibrate` tells.
        device: where the method is.
        left_out: they were learned, and judged as if left out. Otherwise the level stays in unless it is asked for:
            whether that helps methods which train was not measured.

    Returns:
        The images compared with what is usual. It is learned from themselves; so each unit is compared with what the
        others say.
    """
    members = known.units.unique(return_counts=True)[1]
    if method.places_matter is not False and len(members) >= _ENOUGH:
        explained = explained_by_place(known.maps, known.inside, known.units)
        used = method.places_matter or explained >= _EXPLAINED
        told["places"] = {"explained": explained, "used": used, "images": len(known.maps)}
        if used:
            sums = PlaceSums.of(known.maps, known.inside)
            method.place_gain, method.place_shift = (part.to(device) for part in sums.scale())
            known = _placed(known, sums, method.scored_share)
    if method.level_matters is not False and int((members > 1).sum()) >= _ENOUGH:
        levels = quiet_level(known.maps, known.inside)
        line, lines, explained = level_lines(known.scores, levels, known.units)
        used = line.slope > 0 and (method.level_matters or (left_out and explained >= _LEVELLED))
        told["level"] = {"explained": explained, "used": used, "images": len(known.maps), "slope": line.slope}
        if used:
            method.level_line = torch.tensor([line.slope, line.usual, line.lowest, line.highest], device=device)
            known = _levelled(known, lines, levels)
    return known


def _placed(known: Judged, sums: PlaceSums, share: float) -> Judged:
    """Standardise the maps of each unit by what the others say is usual at each place."""
    scores, maps = torch.empty_like(known.scores), torch.empty_like(known.maps)
    for unit in known.units.unique():
        own = known.units == unit
        inside = known.inside[own]
        gain, shift = sums.without(PlaceSums.of(known.maps[own], inside)).scale()
        maps[own] = known.maps[own] * gain + shift
        scores[own] = mean_of_highest(maps[own], share, inside)
    return replace(known, scores=scores, maps=maps)


def _levelled(known: Judged, lines: Mapping[int, LevelLine], levels: Tensor) -> Judged:
    """Take out of the scores of each unit what its level adds, as the others say."""
    scores = known.scores.clone()
    for unit, line in lines.items():
        own = known.units == unit
        scores[own] -= line.shift(levels[own])
    return replace(known, scores=scores)


def check_meaning(method: Method, good: Judged, learned: bool = False) -> None:
    """Raise where the scores of good images say nothing about the next part.

    Images that were learned may well have the score 0 everywhere, where a memory bank holds all their patches.
    """
    scores, peaks = good.scores.tolist(), peaks_of(good).tolist()
    lowest = float(good.maps.min())
    wrong = [score for score in scores if not math.isfinite(score)]
    remedy = (
        "look at the images: they may be black, or all alike (pickglass info DATA). Give images that show the part, "
        "or another method"
    )
    if wrong or not all(map(math.isfinite, peaks)):
        shown = ", ".join(f"{score:g}" for score in (wrong or peaks)[:3])
        raise DataError(
            f"{type(method).__name__} gives {len(wrong) or 'some'} of {len(scores)} good images scores that are no "
            f"numbers ({shown}), so it could judge nothing: {remedy}"
        )
    if not learned and max(peaks) == lowest and len(set(scores)) == 1:
        raise DataError(
            f"{type(method).__name__} gives each place of {len(scores)} good images one and the same value, "
            f"{lowest:g}, so it has learned nothing that a part could differ from: {remedy}"
        )
