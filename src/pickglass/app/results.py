"""Each command prints one of these dicts with ``--json``.

Metrics lie in 0..1, boxes are [x, y, w, h] in pixels of the original image, and what is absent is null.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from typing_extensions import TypedDict

from pickglass.calibration import Verdict

__all__ = [
    "BENCH_STAGES",
    "AblationRow",
    "AdviseResult",
    "Advised",
    "BenchMachine",
    "BenchResult",
    "BenchRun",
    "BenchTimes",
    "CompareResult",
    "ConvertResult",
    "ConvertedSet",
    "Counts",
    "DefectResult",
    "DemoModel",
    "DemoResult",
    "DistillResult",
    "Disturbed",
    "DriftChange",
    "DriftResult",
    "ExplainResult",
    "ExplainedLayer",
    "ExplainedPlace",
    "ExplainedShare",
    "ExploreResult",
    "ExploredField",
    "ExploredLayer",
    "ExportResult",
    "Failed",
    "FitManyResult",
    "FitResult",
    "FittedCategory",
    "ImageResult",
    "InfoResult",
    "KnownDefects",
    "LabelResult",
    "LayerProbe",
    "LayerResult",
    "LayersListing",
    "LayersResult",
    "LookLayer",
    "LookResult",
    "MachineFacts",
    "MarksLayoutResult",
    "MarksResult",
    "MarksUsed",
    "MethodListing",
    "MethodsResult",
    "Metrics",
    "ModelMetrics",
    "MovedImage",
    "NearestPatch",
    "NextStep",
    "PredictResult",
    "RenamedImage",
    "ReproduceCell",
    "ReproduceResult",
    "ReproduceRow",
    "RobustnessResult",
    "RuledOut",
    "SeenSize",
    "SettingListing",
    "SightResult",
    "SimilarImage",
    "StudyCell",
    "StudyResult",
    "Suspicious",
    "TestResult",
    "ThresholdResult",
    "UpdateResult",
    "UpdatedImage",
    "WatchHeartbeat",
    "WatchResult",
    "WatchedImage",
    "WeightsResult",
    "WeightsRow",
]


class Failed(TypedDict):
    """One image that could not be read."""

    path: str
    error: str


class Suspicious(TypedDict):
    """A training image that looks like none of the others, as a ``whole`` or in a spot.

    ``score`` counts standard deviations.
    """

    path: str
    score: float
    whole: bool


class KnownDefects(TypedDict):
    """The bad parts that a fit was shown: how many, of which types, by which names, and what for.

    ``use``: ``"learned"``, where the method learns from them, or ``"unsure"``, where they set that threshold.
    """

    n: int
    types: dict[str, int]
    use: str
    names: list[str]


class FitResult(TypedDict):
    """The result of ``pickglass fit``.

    ``model_id``: digest of what decides the scores; its version is 1. ``image_threshold`` and ``threshold_sentence``,
    which names the image that set it: null without such images. ``layers_chosen``: by whom, ``"user"``, ``"table"`` (of
    the layers of well-known backbones) or ``"strides"``, of a backbone that is not in it. ``size``: the setting, and
    ``canvas``: the [height, width] in pixels at which it has images read. ``dropped``: whether the suspicious images
    were left out. ``adaptation``: null unless asked for, otherwise ``stages``, ``kept`` (epoch, 0 where none was
    better), ``auroc`` (per epoch from 0 on) and more. ``auto``: how ``--preset auto`` chose, null without it; its
    ``ablation`` holds an :class:`AblationRow` a part. ``foreground``: null unless a mask of it was found and is the
    region of interest, else its ``share`` of the image, ``n_images`` and the numbers of its ``checks``.
    ``known_defects``: null where no bad part was shown. ``unsure_threshold``: null where nothing is unsure.
    """

    model: str
    model_id: str
    method: str
    n_fit: int
    n_validate: int
    n_calibrate: int
    fit_s: float
    image_threshold: float | None
    unsure_threshold: float | None
    threshold_sentence: str | None
    backbone: str
    layers: list[str]
    layers_chosen: str
    size: int | str | Sequence[int]
    canvas: list[int]
    details: dict[str, Any]
    adaptation: dict[str, Any] | None
    suspicious: list[Suspicious]
    dropped: bool
    known_defects: KnownDefects | None
    auto: dict[str, Any] | None
    foreground: dict[str, Any] | None


class Counts(TypedDict):
    """The numbers of images behind the rates at a model's own threshold; null where the rate is.

    ``n_good`` are good and ``n_defective`` defective; ``false_alarms`` and ``unsure_good`` count among the good ones,
    ``missed`` and ``unsure_defective`` among the defective ones.
    """

    n_good: int
    n_defective: int
    false_alarms: int | None
    missed: int | None
    unsure_good: int | None
    unsure_defective: int | None


class Metrics(Counts):
    """The metrics of a set of images; null where they are undefined, e.g. without defective images or masks.

    ``f1``, ``false_alarm_rate``, ``miss_rate`` and ``pixel_f1`` are those at the model's own thresholds, null
    without a calibration. A false alarm is a good image that is judged bad, a miss a defective one that is judged good;
    ``unsure_good_rate`` and ``unsure_defective_rate`` are the shares that are judged unsure, null where the model has
    one image threshold. ``aupimo`` is the mean over the defective images. ``au_spro_05`` is null unless the data
    set gives saturation areas (MVTec LOCO AD). ``intervals``: metric -> [low, high], the 95 % bootstrap interval;
    null if none were asked for.
    """

    n: int
    image_auroc: float | None
    average_precision: float | None
    f1_max: float | None
    pixel_auroc: float | None
    aupro_30: float | None
    aupro_05: float | None
    aupimo: float | None
    au_spro_05: float | None
    f1: float | None
    false_alarm_rate: float | None
    miss_rate: float | None
    unsure_good_rate: float | None
    unsure_defective_rate: float | None
    pixel_f1: float | None
    intervals: dict[str, list[float]] | None


class NextStep(TypedDict):
    """What a test suggests to try next, and the command for it; null where there is none."""

    text: str
    command: str | None


class TestResult(Metrics):
    """The result of ``pickglass test``.

    ``verdict``: one sentence on the mistakes and the promise. ``next``: what to try. ``by_type``: metrics of each
    defect type with all good images. ``left_out``: reason -> number of images that are not judged for it. ``notes``:
    sentences on images that some metrics leave out. ``robustness``: null unless asked for.
    """

    verdict: str
    next: list[NextStep]
    images_per_s: float
    report: str | None
    by_type: dict[str, Metrics]
    left_out: dict[str, int]
    notes: list[str]
    failed: list[Failed]
    robustness: RobustnessResult | None


class Disturbed(Counts):
    """The metrics of a model on test images that were all disturbed alike, at its own threshold; null where undefined.

    ``kind`` is ``"none"`` for the images as they are; ``unit`` says what ``strength`` counts.
    """

    kind: str
    strength: float
    unit: str
    image_auroc: float | None
    aupro_30: float | None
    aupro_05: float | None
    false_alarm_rate: float | None
    miss_rate: float | None
    unsure_good_rate: float | None
    unsure_defective_rate: float | None


class RobustnessResult(TypedDict):
    """The result of ``pickglass test --robustness``; ``seed`` decided the noise and the directions."""

    page: str | None
    n: int
    seed: int
    undisturbed: Disturbed
    disturbed: list[Disturbed]
    failed: list[Failed]


class ModelMetrics(Metrics):
    """The metrics of one model of ``pickglass test MODEL MODEL ... DATA``."""

    model: str
    name: str
    images_per_s: float


BENCH_STAGES = ("decode", "prepare", "backbone", "method", "graph", "map")
"""What ``pickglass bench`` times, in the order in which an image passes it. ``prepare`` fits the image on the canvas;
``graph`` is backbone and method in one, which an exported file does not tell apart; ``map`` enlarges the map to the
image and finds the defects in it."""


class BenchTimes(TypedDict):
    """Times of ``n`` passes in milliseconds; a percentile is null where there are too few passes to know it."""

    n: int
    mean_ms: float
    median_ms: float
    p95_ms: float | None
    p99_ms: float | None


class BenchRun(TypedDict):
    """One model in one runtime, as ``pickglass bench`` measured it.

    ``first_s``: from loading the file to the first verdict, the runtime's libraries included. ``latency``: all stages
    of one image, ``stages`` each of them, ``times_ms`` all single times. ``images_per_s``: from the files to the
    defects, with ``batch`` images at once and threads that decode ahead (EfficientAD's protocol: of the network
    alone); ``stage_images_per_s``: each stage alone. ``peak_mb``: of the process, before accuracy is looked at.
    ``gflop``: billions of operations that an image takes; ``peak_share``: how much of the machine's matrix peak the
    network reaches. ``n_judged``: labelled images behind ``image_auroc`` and ``aupro_30``. ``failed``: images
    that this run left out. Null: not known.
    """

    model: str
    name: str
    method: str
    runtime: str
    device: str
    precision: str
    canvas: list[int]
    first_s: float
    latency: BenchTimes
    stages: dict[str, BenchTimes]
    times_ms: list[float]
    batch: int
    images_per_s: float
    stage_images_per_s: dict[str, float]
    file_mb: float
    peak_mb: float | None
    gflop: float | None
    peak_share: float | None
    n_judged: int
    image_auroc: float | None
    aupro_30: float | None
    failed: list[Failed]


class MachineFacts(TypedDict):
    """What a machine says of itself; no name of a host or a user is among it.

    ``threads``: what ``OMP_NUM_THREADS`` or ``--threads`` asks for, null: as each runtime likes. ``load``: mean number
    of processes that wanted a core in the minute before.
    """

    cpu: str
    cores: int
    threads: int | None
    memory_gb: float | None
    system: str
    python: str
    versions: dict[str, str]
    load: float | None


class BenchMachine(MachineFacts):
    """The machine of a ``pickglass bench``.

    ``gpu``: null where none is used. ``peak_gflops``: billions of operations a second in a product of large float32
    matrices on the CPU, in ``peak_library``; ``gpu_peak_gflops`` likewise on the GPU.
    """

    gpu: str | None
    peak_gflops: float
    peak_library: str
    gpu_peak_gflops: float | None


class BenchResult(TypedDict):
    """The result of ``pickglass bench``.

    ``warm_up`` and ``repeat``: passes before the timed ones, and the timed ones that were asked for. ``images``: what
    was read. ``notes``: what a reader of the times has to know. ``written``: files.
    """

    protocol: str
    warm_up: int
    repeat: int
    batch: int
    workers: int
    time: str
    images: str
    machine: BenchMachine
    runs: list[BenchRun]
    notes: list[str]
    failed: list[Failed]
    written: list[str]


class CompareResult(TypedDict):
    """The result of ``pickglass test`` with several models, in the order they were named."""

    models: list[ModelMetrics]
    report: str | None
    left_out: dict[str, int]
    failed: list[Failed]


class DefectResult(TypedDict):
    """One connected region above the pixel threshold; ``area_mm2`` is null without a pixel pitch.

    ``type`` is that of the image for the region with the highest peak, which is the one that gets a name, and null for
    the others.
    """

    box: list[int]
    area_px: int
    area_mm2: float | None
    peak: float
    type: str | None


class ImageResult(TypedDict):
    """The verdict on one image of ``pickglass predict``.

    ``defects``: the highest peak first. ``type``: that of the region with the highest peak, or ``"unknown"``;
    ``type_probability``: that of the most likely type, even of one that is not sure enough to be named. Both are null
    where the model has no examples (``pickglass label``) and for images judged good. ``time``: when it was judged,
    UTC.
    """

    path: str
    score: float
    verdict: Verdict | None
    defects: list[DefectResult]
    p_value: float | None
    p_value_log10: float | None
    p_value_extrapolated: bool | None
    type: str | None
    type_probability: float | None
    time: str


class PredictResult(TypedDict):
    """The result of ``pickglass predict``; ``stale``: settings were changed after the threshold was set.

    ``threshold``: an image whose score exceeds it is bad, null where the model has none. ``unsure_threshold``: an image
    whose score exceeds only this is unsure, null where none is. ``model_id`` and ``model_version`` say which model
    judged, and ``runtime`` what ran an exported one, and what was measured for it.
    """

    model_id: str
    model_version: int
    threshold: float | None
    unsure_threshold: float | None
    results: list[ImageResult]
    failed: list[Failed]
    stale: bool
    runtime: str | None


class WatchedImage(TypedDict):
    """One image of ``pickglass watch``, as JSON lines, webhooks and MQTT are told of it.

    The fields of :class:`ImageResult`, and: ``kind`` "image"; ``id``: the same whenever the message is sent again;
    ``number``: place in the order of judging, from 1 on; ``state``: judged, failed or skipped; ``error``: why there is
    no verdict; ``threshold``, ``unsure_threshold``, ``model_id`` and ``model_version`` as of :class:`PredictResult`;
    ``sorted_to``: where the file is now, null where it stays or could not be moved. What an image without a verdict
    lacks is null; its ``defects`` are empty.
    """

    kind: Literal["image"]
    id: str
    number: int
    state: Literal["judged", "failed", "skipped"]
    path: str
    score: float | None
    verdict: str | None
    defects: list[DefectResult]
    p_value: float | None
    p_value_log10: float | None
    p_value_extrapolated: bool | None
    type: str | None
    type_probability: float | None
    time: str
    error: str | None
    threshold: float | None
    unsure_threshold: float | None
    model_id: str
    model_version: int
    sorted_to: str | None


class WatchHeartbeat(TypedDict):
    """A sign of life of ``pickglass watch``; counts are those since it was started.

    ``judged`` counts verdicts (``verdicts``: each), ``queue`` the images that are ready and wait, ``waited_for`` files
    that are not complete yet, ``ignored`` files of the folder that are no images by their names. ``late``: more wait
    than ``--queue`` allows. ``last_error``: null if there was none; it stays after it is over (``errors``: those of
    now). ``behind``: output -> images that it is still to be told of; ``refused``: messages that it did not take.
    """

    kind: Literal["heartbeat"]
    time: str
    uptime_s: float
    judged: int
    verdicts: dict[str, int]
    failed: int
    skipped: int
    queue: int
    waited_for: int
    ignored: int
    late: bool
    images_per_s: float
    last_image: str | None
    errors: list[str]
    last_error: str | None
    model_id: str
    model_version: int
    behind: dict[str, int]
    refused: dict[str, int]


class WatchResult(TypedDict):
    """The result of ``pickglass watch`` when it ends; counts are those since it was started.

    ``last``: number of the last image in the journal. ``behind`` and ``refused`` as of :class:`WatchHeartbeat`.
    """

    kind: Literal["end"]
    journal: str
    judged: int
    verdicts: dict[str, int]
    failed: int
    skipped: int
    last: int
    seconds: float
    behind: dict[str, int]
    refused: dict[str, int]
    errors: list[str]


class DriftChange(TypedDict):
    """The change of one property of the images.

    ``before`` and ``now`` are medians, ``delta`` is Cliff's delta (-1 to 1), ``difference`` is in standard
    deviations of the reference, ``p`` is adjusted for the number of properties. See
    :mod:`pickglass.calibration.drift`.
    """

    what: str
    before: float
    now: float
    delta: float
    difference: float | None
    p: float
    moved: bool
    how: str


class DriftResult(TypedDict):
    """The result of ``pickglass drift``.

    ``displacement``: [down, right] in shares of the image, null unless the position moved.

    ``left_out``: images that were fitted or are reference images. ``smallest_p``: the least that ``p`` can be with
    so many images. ``detectable``: the change, in standard deviations, that is found four times in five.
    """

    drift: bool
    level: float
    n_images: int
    n_reference: int
    n_new: int
    left_out: int
    most: str | None
    changes: list[DriftChange]
    displacement: list[float] | None
    smallest_p: float
    detectable: float
    sentence: str
    failed: list[Failed]


class InfoResult(TypedDict):
    """The result of ``pickglass info``; ``about`` is the header of a model or export, or describes a data set.

    ``beside``: account of the files of a folder of several data sets that belong to none of them; else null.
    """

    kind: Literal["model", "export", "data"]
    path: str
    about: dict[str, Any]
    beside: dict[str, Any] | None


class ConvertedSet(TypedDict):
    """A data set that ``pickglass convert`` wrote.

    ``links``: number of files by how they were made. ``lost``: what the form cannot hold, with the number of images.
    ``account``: what became of the files of the data, see :class:`pickglass.data.Account`.
    """

    name: str
    layout: str
    path: str
    images: int
    masks: int
    links: dict[str, int]
    lost: dict[str, int]
    account: dict[str, Any]


class ConvertResult(TypedDict):
    """The result of ``pickglass convert``."""

    folder: str
    form: str
    sets: list[ConvertedSet]


class LabelResult(TypedDict):
    """The result of ``pickglass label``.

    ``types``: number of examples of each type. ``groups``: number of parts that they show. Cross-validation by
    group gives ``accuracy``, the mean over types of the share that is named rightly if all are named; ``named``,
    the share of examples that is sure enough to get a name; ``right``, the share of these names that is right;
    ``confusion``, true type -> most likely type -> number. ``threshold``: the least probability of a name.
    ``found``: number of examples whose region the detector sees where it is marked.
    """

    model: str
    types: dict[str, int]
    groups: int
    layers: list[str]
    pooling: str
    accuracy: float
    named: float
    right: float
    confusion: dict[str, dict[str, int]]
    threshold: float
    found: int
    sentence: str


class LayerProbe(TypedDict):
    """How well a layer tells labelled images apart, by ``pickglass layers --probe``.

    ``types``: balanced accuracy of telling defect types apart, chance 1 / their number; ``defect``: AUROC of defect
    against good; both by group, null where undefined, with 95 % intervals. ``dimension``: intrinsic dimension of
    good cells. See :mod:`pickglass.features.anatomy.probe`.
    """

    types: float | None
    types_interval: list[float] | None
    defect: float | None
    defect_interval: list[float] | None
    dimension: float | None


class LayerResult(TypedDict):
    """One layer of ``pickglass layers``; receptive fields are in pixels of the network's input.

    ``grid`` is [h, w]. ``rf_gradient`` is a lower bound where ``rf_at_least``, since its box touches the image's
    border; ``rf_image`` is what it was measured on. ``rf_theoretical`` is null where an operation is not
    understood. ``rf_effective`` is null without images. ``rrf`` is ``rf_gradient`` over the input's longer side.
    ``macs``: multiply-adds an image from the pixels to this layer.
    """

    node: str
    name: str
    grid: list[int]
    stride: int
    channels: int
    rf_gradient: int
    rf_at_least: bool
    rf_image: Literal["zero", "noise"]
    rf_theoretical: int | Literal["global"] | None
    rf_effective: int | None
    rrf: float
    macs: int
    probe: LayerProbe | None


class LayersResult(TypedDict):
    """The result of ``pickglass layers``.

    ``weights``: name of the weights, with more in ``weights_info``. ``size``: [H, W] of the input. ``probed``: null
    without ``--probe``, otherwise the number of ``good`` images and of images of each of the ``types``.
    """

    backbone: str
    weights: str
    weights_info: dict[str, Any]
    size: list[int]
    nodes: list[LayerResult]
    output: str | None
    probed: dict[str, Any] | None


class WeightsRow(TypedDict):
    """One file of weights, as ``pickglass weights`` names it.

    ``name``: ``BACKBONE`` or ``BACKBONE:WEIGHTS``; ``path``: where it is, null where it is not; ``fetchable``: whether
    ``weights get`` can fetch it; ``megabytes`` (about), ``licence`` and ``digest`` (what it must hash to): null where
    not known; ``sha256`` and ``verified`` (it agrees with a digest that was known before): null where nothing was read.
    """

    name: str
    file: str
    path: str | None
    fetchable: bool
    megabytes: float | None
    licence: str | None
    source: str
    digest: str | None
    sha256: str | None
    verified: bool | None


class WeightsResult(TypedDict):
    """The result of ``pickglass weights``; ``folder``: into which files were packed or imported, otherwise null."""

    action: str
    weights: list[WeightsRow]
    folder: str | None


class LayersListing(TypedDict):
    """The result of ``pickglass layers --list``: backbone -> its named layers; for one backbone, all its layers."""

    backbones: dict[str, list[str]]


class LookLayer(TypedDict):
    """One layer of ``pickglass look``; ``grid`` is [h, w] in cells.

    ``contrast_sd`` is how much the defect stands out, in standard deviations of what other places show; see
    :mod:`pickglass.features.anatomy.visibility`. Null where there are too few other places; without a defect the
    verdict is null too.
    """

    layer: str
    grid: list[int]
    stride: int
    channels: int
    contrast_sd: float | None
    verdict: Literal["visible", "faint", "lost", "unclear"] | None


class LookResult(TypedDict):
    """The result of ``pickglass look``; ``size`` is [H, W] of the network's input."""

    backbone: str
    weights: str
    size: list[int]
    layers: list[LookLayer]
    page: str | None


class NearestPatch(TypedDict):
    """A patch of a good image that the model remembers, beside a place of ``pickglass explain``.

    ``distance``: in the units of the map, before it is smoothed. ``image``: name of the training image, null where the
    model does not tell. ``x``, ``y``: middle of the patch in pixels of that image, null unless its file was ``found``;
    ``canvas_x``, ``canvas_y``: the same in pixels of the network's input, null where the model does not tell.
    ``turned``: degrees by which the image had been turned when the patch was learned.
    """

    distance: float
    image: str | None
    x: int | None
    y: int | None
    canvas_x: int | None
    canvas_y: int | None
    turned: int
    found: bool


class ExplainedShare(TypedDict):
    """How much of a place's value comes from one level, or one part of the method; shares add up to 1."""

    name: str
    share: float


class ExplainedLayer(TypedDict):
    """How much a place stands out in one layer that the model reads; fields as of :class:`LookLayer`."""

    layer: str
    contrast_sd: float | None
    verdict: Literal["visible", "faint", "lost", "unclear"]


class ExplainedPlace(TypedDict):
    """One place of ``pickglass explain``.

    ``x``, ``y``: pixel of the highest map value there, which is ``value``; ``over``: that value over the pixel
    threshold, null where the model has none above 0. ``box`` and ``area_px``: of the region above the pixel threshold,
    or of the defect that was ``named``; null where the place lies below the threshold. What needs torch is empty for an
    exported model: ``shares`` (also where the method cannot tell levels apart), ``nearest`` (also where it remembers no
    patches) and ``layers``.
    """

    x: int
    y: int
    value: float
    over: float | None
    box: list[int] | None
    area_px: int | None
    named: bool
    sentence: str
    shares: list[ExplainedShare]
    nearest: list[NearestPatch]
    layers: list[ExplainedLayer]


class SimilarImage(TypedDict):
    """The good image that is most like an image as a whole.

    ``distance``: between the means of all channels, in standard deviations of good images, a root mean square.
    ``usual``: the median of the same between each good image and its nearest other one, null with fewer than three.
    ``found``: whether its file was there to be shown.
    """

    image: str
    distance: float
    usual: float | None
    found: bool


class ExplainResult(TypedDict):
    """The result of ``pickglass explain``.

    ``ratio``: the score over the image threshold, null unless both are above 0. ``spreads``: how far the score lies
    above the threshold, in standard deviations of the scores of good images, below it negative. ``spread``: that
    standard deviation. What the model lacks is null. ``places``: a named defect first, then the hottest first.
    ``similar``: null where the nearest patches say more, or where nothing is known. ``notes``: what could not be said,
    and why.
    """

    path: str
    model_id: str
    model_version: int
    method: str
    sentence: str
    verdict: Verdict | None
    score: float
    threshold: float | None
    unsure_threshold: float | None
    ratio: float | None
    spread: float | None
    spreads: float | None
    p_value: float | None
    p_value_log10: float | None
    p_value_extrapolated: bool | None
    pixel_threshold: float | None
    places: list[ExplainedPlace]
    similar: SimilarImage | None
    notes: list[str]
    page: str | None


class ExploredLayer(TypedDict):
    """One layer of the layer explorer; ``rf_theoretical`` as of :class:`LayerResult`, the rest as of LookLayer."""

    layer: str
    grid: list[int]
    stride: int
    channels: int
    rf_theoretical: int | str | None
    contrast_sd: float | None
    verdict: Literal["visible", "faint", "lost", "unclear"] | None


class ExploreResult(TypedDict):
    """What the layer explorer says of an image.

    ``size``: [H, W] of the image. ``seen``: the box [x, y, w, h] of the image that the network reads at once, all of it
    without tiles. ``frame``: the same with what lies beyond the image, in fractions of pixels; the grids lie over it.
    ``input``: [H, W] of the network's input.
    """

    backbone: str
    weights: str
    size: list[int]
    seen: list[int]
    frame: list[float]
    input: list[int]
    layers: list[ExploredLayer]


class ExploredField(TypedDict):
    """What one cell of a layer sees: boxes [x, y, w, h] in pixels of the image, cut off at its edges.

    ``cell``: the cell itself. ``theoretical``: what can reach it, null where it is not known. ``effective``: the square
    that holds 95 % of what does on this very image, null where nothing does.
    """

    layer: str
    cell: list[int]
    theoretical: list[int] | None
    effective: list[int] | None


class DistillResult(TypedDict):
    """The result of ``pickglass distill``.

    ``explained_variance``: the share of each channel's variance on the held-out photographs
    that the teacher explains, as ``mean``, ``min``, ``q25``, ``median``, ``q75``, ``max`` over the channels.
    """

    teacher: str
    model: str
    backbone: str
    layers: list[str]
    photos: int
    held_out: int
    step: int
    steps: int
    seconds: float
    explained_variance: dict[str, float]


class Advised(TypedDict):
    """One way to look at the images that ``pickglass advise`` judged, the highest AUPRO@0.05 first.

    ``size`` is [H, W] of the network's input, of the canvas where there is a ``tile``. ``aupro_05`` and
    ``image_auroc`` are those of the painted defects, with [low, high] of their 95 % intervals. ``gain``: difference
    in AUPRO@0.05 to the default of ``fit``, null where there is none; its interval counts how far painted and real
    gains have differed. ``by_contrast``: contrast of the defects, in units of that which is half seen -> AUPRO@0.05.
    ``latency_ms`` and ``model_mb``, the file, were measured on this machine where ``measured``, else the latency is
    estimated from the backbone's and the size null. ``peak_mb``: peak of the whole process. ``too_slow``: beyond
    ``--latency-ms``. ``command`` fits it.
    """

    method: str
    backbone: str
    layers: list[str]
    size: list[int]
    tile: list[int] | None
    aupro_05: float
    aupro_05_interval: list[float]
    gain: float | None
    gain_interval: list[float] | None
    image_auroc: float
    image_auroc_interval: list[float]
    by_contrast: dict[str, float]
    latency_ms: float
    measured: bool
    model_mb: float | None
    peak_mb: float | None
    too_slow: bool
    command: str


class RuledOut(TypedDict):
    """Layers or a size that geometry alone excludes; ``layers`` names the backbone too, null for a size."""

    layers: str | None
    size: list[int]
    why: str


class AdviseResult(TypedDict):
    """The result of ``pickglass advise``.

    ``command``: fits the choice, which is one of the ranking; null if there is none. ``why``: reason for the
    choice. ``limits``: what this advice cannot promise, a sentence each. ``n_fit`` images taught, and ``n_painted``
    defects were painted on ``n_held`` others, with edges of ``spread_px``. ``half_contrast``: kind of defect ->
    contrast around which it was painted, null where the default of ``fit`` finds less than half even of one that is
    clearly visible. ``width_px``: null where each kind was as wide as it is. ``part``: share of the image that the
    part was found on, null where it was not.
    """

    command: str | None
    why: str
    ranking: list[Advised]
    ruled_out: list[RuledOut]
    limits: list[str]
    defect_px: float
    defect_mm: float | None
    width_px: float | None
    half_contrast: dict[str, float | None]
    spread_px: float | None
    part: float | None
    image: list[int]
    n_fit: int
    n_held: int
    n_painted: int
    seconds: float
    report: str | None


class SeenSize(TypedDict):
    """What a model sees of painted defects of one size.

    ``seen``: share of the ``n_painted`` defects that it flags where they are clearly visible, at contrast 1.
    ``contrast``: from there on it flags half of them, null where it never does; ``by_kind``: the same for each kind.
    ``width_px``: null where each kind is as wide as it is.
    """

    size_px: float
    width_px: float | None
    size_mm: float | None
    n_painted: int
    seen: float
    contrast: float | None
    by_kind: dict[str, float | None]


class SightResult(TypedDict):
    """The result of ``pickglass advise DATA --model MODEL``.

    ``smallest_px``: the size from which on, at all larger ones tried too, the model flags at least half of the clearly
    visible defects; null: not even at the largest. ``n_images`` were painted on, of which the model was not fitted on
    ``n_fresh``; ``n_flagged`` others were flagged without a defect. ``spread_px``: softness of the painted edges.
    ``part``: share of the image on which they were painted, null: anywhere, or in the region of interest.
    """

    model: str
    method: str
    image: list[int]
    n_images: int
    n_fresh: int
    n_flagged: int
    kinds: list[str]
    sizes: list[SeenSize]
    smallest_px: float | None
    smallest_mm: float | None
    spread_px: float
    part: float | None
    limits: list[str]
    seconds: float
    report: str | None


class DemoModel(TypedDict):
    """One model of ``pickglass demo``, and what it says of pieces that it was not fitted on.

    ``name`` is ``"squeezed"``, ``"default"`` or ``"advised"``. It calls ``missed`` of ``n_defective`` pieces with a
    defect good, and ``flagged`` of ``n_good`` fresh good pieces bad.
    """

    name: str
    model: str
    fit: FitResult
    threshold: ThresholdResult
    missed: int
    n_defective: int
    flagged: int
    n_good: int
    metrics: Metrics


class DemoResult(TypedDict):
    """The result of ``pickglass demo``.

    ``models``: squeezed, default, advised. ``layers``: what each layer shows of one defect, ``"squeezed"`` and
    ``"advised"``. ``page``: the page with all of it. ``defect_px``: extent of the smallest defects; ``piece_px``: side
    of a piece.
    """

    folder: str
    data: str
    defect_px: float
    piece_px: int
    models: list[DemoModel]
    advice: AdviseResult
    layers: dict[str, list[LookLayer]]
    page: str
    seconds: float


class AblationRow(TypedDict):
    """One part of ``preset="auto"``: the variants that were ``tried``, the ``best`` one and whether it was ``taken``.

    ``gain``: in ``metric`` on painted defects against going without the part, with its 95 % ``interval``, paired by
    image; null where nothing could be tried.
    """

    part: str
    tried: list[str]
    best: str | None
    metric: str
    gain: float | None
    interval: list[float] | None
    taken: bool
    why: str


class StudyCell(TypedDict):
    """One cell of ``pickglass study``.

    ``state`` is waiting, claimed (another process has it), done, failed or missing (its weights were not found).
    ``command`` does this cell again; null unless it failed or lacks its weights.
    """

    key: str
    data: str
    dataset: str
    method: str
    backbone: str
    layers: list[str]
    weights: str
    size: int | str
    seed: int
    state: str
    estimate_s: float | None
    total_s: float | None
    image_auroc: float | None
    aupro_30: float | None
    error: str | None
    command: str | None


class StudyResult(TypedDict):
    """The result of ``pickglass study``.

    ``n`` counts the cells, ``done`` and the others those in each state; ``waiting`` includes those that another
    process has. ``estimate_s``: seconds that the rest will take, null unless ``--dry-run``. ``left_out``:
    combinations without published weights. ``notes``: which methods gave the same figures with every seed.
    """

    file: str
    n: int
    done: int
    failed: int
    missing: int
    waiting: int
    estimate_s: float | None
    left_out: list[str]
    notes: list[str]
    cells: list[StudyCell]
    csv: str | None
    report: str | None


class ReproduceCell(StudyCell):
    """One category, method and seed of ``pickglass reproduce``; ``figures``: the benchmark's metrics, once done."""

    figures: dict[str, float | None]


class ReproduceRow(TypedDict):
    """One method of ``pickglass reproduce``: the means over the categories that are done.

    ``weights_sha256``: of the files that were read, "" for random weights. ``published``: the metrics that were
    published, by ``source``. ``comparable``: whether both are of all categories and of the same images. ``notes``: what
    else keeps the two from being the same thing.
    """

    method: str
    backbone: str
    weights_sha256: list[str]
    categories: int
    of_categories: int
    seeds: int
    ours: dict[str, float | None]
    published: dict[str, float]
    comparable: bool
    source: str
    notes: list[str]


class ReproduceResult(TypedDict):
    """The result of ``pickglass reproduce``; ``n`` and the states count cells, as a study's do."""

    benchmark: str
    title: str
    metrics: list[str]
    notes: list[str]
    rows: list[ReproduceRow]
    file: str
    n: int
    done: int
    failed: int
    missing: int
    waiting: int
    cells: list[ReproduceCell]


class ThresholdResult(TypedDict):
    """The result of ``pickglass threshold``.

    ``unsure_threshold``: an image is unsure between this and ``image_threshold``, null where none is.
    ``image_threshold_before``, ``unsure_threshold_before`` and ``pixel_threshold_before``: those that were replaced,
    null where there were none; ``sentence_before``: what was said of them, null where nothing was. ``unsure_bound``:
    the share of good parts that is bad or unsure at most, null where nothing is promised of it. ``n_calibrate`` counts
    images, or groups where the data has groups; ``left_out``: images that the fit left out as suspicious, and that
    count for nothing here, either. ``model_id`` stays, ``model_version`` rises by one.
    """

    promise: str
    image_threshold: float | None
    unsure_threshold: float | None
    pixel_threshold: float | None
    image_threshold_before: float | None
    unsure_threshold_before: float | None
    pixel_threshold_before: float | None
    false_alarm_bound: float | None
    unsure_bound: float | None
    confidence: float | None
    n_calibrate: int
    left_out: int
    sentence: str
    sentence_before: str | None
    model_id: str
    model_version: int


class UpdatedImage(TypedDict):
    """One image of ``pickglass update``, before and after.

    ``judged``: how the score after the update came about: ``held back`` or ``left out`` (the image was not learned, or
    judged as if not), ``learned``, or ``bad`` for a known bad image.
    """

    path: str
    score_before: float
    verdict_before: str | None
    score: float
    verdict: str | None
    judged: str


class MovedImage(TypedDict):
    """One marked image that lies elsewhere, or under another name, than where it was marked."""

    path: str
    now: str


class MarksUsed(TypedDict):
    """What ``pickglass update --marks`` took from the marks.

    ``good`` and ``bad`` count images; those that are ``unsure`` are not used, and among them are the ``disputed`` ones,
    which people have marked differently. ``kept_out``: images that were named as good and are marked bad or unsure, so
    that they were not learned. ``learned_bad``: images that are marked bad and that the model has learned as
    good before, which no update takes back.
    """

    good: int
    bad: int
    unsure: int
    disputed: list[str]
    moved: list[MovedImage]
    kept_out: list[str]
    learned_bad: list[str]


class RenamedImage(TypedDict):
    """One image whose name was taken in a folder: its path, and its name in the new data set."""

    path: str
    name: str


class MarksLayoutResult(TypedDict):
    """A data set that was written from marks: images by kind, and what became of the others.

    ``failed``: images that were not found, or are others than they were; they are not in the data set.
    """

    folder: str
    good: int
    bad: int
    masks: int
    unsure: int
    disputed: list[str]
    renamed: list[RenamedImage]
    moved: list[MovedImage]
    failed: list[Failed]


class MarksResult(TypedDict):
    """The result of ``pickglass marks``.

    ``good``, ``bad`` and ``unsure`` count the images that are marked so; ``types`` the bad ones by type of defect;
    ``disputed`` names those that people have marked differently, which count as unsure. ``added`` and ``known`` count
    marks that were brought into ``into``; null where none was asked for, like ``table`` and ``data_set``.
    """

    good: int
    bad: int
    unsure: int
    types: dict[str, int]
    masks: int
    disputed: list[str]
    into: str | None
    added: int | None
    known: int | None
    table: str | None
    data_set: MarksLayoutResult | None
    failed: list[Failed]


class UpdateResult(TypedDict):
    """The result of ``pickglass update``.

    ``model`` is null where the model was not replaced, because known bad images that were found before are missed
    now (``bad_lost``). ``learned``, ``validated`` and ``held_back`` count the new images by what they were for,
    ``known`` those that were learned before, ``left_out`` those that the fit left out as suspicious.
    ``suspicious``: new ones that look like none of the other new ones; ``dropped``: whether they were left out.
    ``trained_again``, ``earlier_judged`` and ``earlier_unused`` count images of ``--with``. ``false_alarms_before``
    and ``false_alarms`` count new images that are called bad; ``unlearned_false_alarms`` those among the
    ``unlearned``, which were held back or judged as if left out: for learned ones the figure flatters.
    ``bad_found_before`` and ``bad_found`` count known bad images that are called bad. Counts of verdicts are null
    where there are no images or no thresholds. ``drift_reference``: images that ``drift`` compares with from now
    on. ``marks``: null without ``--marks``.
    """

    model: str | None
    model_id: str
    model_version: int
    method: str
    learned: int
    validated: int
    held_back: int
    known: int
    left_out: int
    suspicious: list[Suspicious]
    dropped: bool
    trained_again: int
    earlier_judged: int
    earlier_unused: int
    promise: str
    image_threshold: float | None
    image_threshold_before: float | None
    pixel_threshold: float | None
    pixel_threshold_before: float | None
    false_alarm_bound: float | None
    sentence: str
    sentence_before: str | None
    false_alarms_before: int | None
    false_alarms: int | None
    unlearned: int
    unlearned_false_alarms: int | None
    images: list[UpdatedImage]
    bad_found_before: int | None
    bad_found: int | None
    bad: list[UpdatedImage]
    bad_lost: list[str]
    drift_reference: int
    marks: MarksUsed | None
    details: dict[str, Any]
    failed: list[Failed]


class ExportResult(TypedDict):
    """The result of ``pickglass export``.

    ``batch`` is null for any number of images; ``keep`` says whether the file has that input; ``canvas`` is [H, W];
    ``certificate``: see :class:`pickglass.detectors.certificate.Certificate`; ``sentence``: what the file's thresholds
    are worth, null without any; ``missing``: what the model has and the file does not.
    """

    path: str
    method: str
    megabytes: float
    opset: int
    batch: int | None
    input: Literal["float32", "uint8"]
    map: Literal["grid", "full"]
    precision: Literal["float32", "float16", "int8"]
    keep: bool
    canvas: list[int]
    certificate: dict[str, Any]
    sentence: str | None
    missing: list[str]


class FittedCategory(TypedDict):
    """One category of ``pickglass fit ROOT``: ``state`` is done, skipped (its file was there) or failed."""

    category: str
    state: Literal["done", "skipped", "failed"]
    model: str
    fit: FitResult | None
    error: str | None


class FitManyResult(TypedDict):
    """The result of ``pickglass fit ROOT -o FOLDER``, with the number of categories in each state."""

    folder: str
    done: int
    skipped: int
    failed: int
    categories: list[FittedCategory]


class SettingListing(TypedDict):
    """One setting of a method in ``pickglass methods NAME``."""

    name: str
    type: str
    default: Any
    meaning: str


MethodListing = TypedDict(
    "MethodListing",
    {
        "method": str,
        "class": str,
        "paper": str,
        "idea": str,
        "presets": dict[str, dict[str, Any]],
        "settings": list[SettingListing],
    },
)
"""One method of ``pickglass methods``; ``settings`` is empty unless the method was named."""


class MethodsResult(TypedDict):
    """The result of ``pickglass methods``."""

    methods: list[MethodListing]
