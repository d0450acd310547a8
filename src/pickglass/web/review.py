"""A data set is looked through: its images with their scores, thumbnails, thresholds with promises, and reports.

Pages ask for ``/api/review/images`` once and then for ``/api/review/scores?after=N`` again and again, which returns
what has come since. All figures (verdicts, confusion matrix, rates) are computed in the browser, so that they follow a
dragged threshold at once; what is promised, and what is written into a model file, is computed here.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import numpy as np
from fastapi import APIRouter, HTTPException, Query, Response
from fastapi import Path as InPath
from fastapi.responses import FileResponse
from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from pickglass.app.pages.images import display
from pickglass.app.results import ThresholdResult
from pickglass.app.review.review import Published, Review, ReviewedData, Stage, scores_key
from pickglass.app.threshold import JudgedGood, change_by_hand, good_evidence, write_thresholds
from pickglass.app.watch.model import LoadedModel
from pickglass.calibration import Calibration, Evidence, Wish, promised
from pickglass.calibration.promises import percent, rounded_up
from pickglass.data import Row, Table
from pickglass.data.files import alone
from pickglass.errors import DataError, Failure, ImageError, InputError, PromiseUnreachable
from pickglass.result import Found
from pickglass.runtime.export_file import read_export_header
from pickglass.runtime.model_header import read_model_header
from pickglass.web.answers import Inspected, inspected, png_of
from pickglass.web.models import ServedModel
from pickglass.web.reports import MOST
from pickglass.web.state import State, TheState

__all__ = [
    "ByHand",
    "NewThresholds",
    "PromiseWish",
    "Promised",
    "ReportWish",
    "ReviewImages",
    "ReviewScores",
    "ReviewThresholds",
    "WrittenReport",
]

router = APIRouter(prefix="/api/review", tags=["review"])

ModelName = Annotated[str | None, Query(description="Name of a served model; by default the first.")]
Index = Annotated[int, InPath(ge=0, description="Number of the image in /api/review/images.")]
_BYTES = {"schema": {"type": "string", "format": "binary"}}
_THUMBNAIL: dict[int | str, dict[str, Any]] = {200: {"content": {"image/jpeg": _BYTES}}}
_PICTURE: dict[int | str, dict[str, Any]] = {200: {"content": {"image/*": _BYTES}}}
_LOGGED = ("image_threshold", "unsure_threshold", "pixel_threshold")
_PATIENCE = 5.0  # seconds that a request waits for the data set to be read
_SHOWN = ("jpg", "jpeg", "png", "bmp", "webp")  # files that browsers show, if they have 8 bits


class ReviewThresholds(TypedDict):
    """A served model and its thresholds as they stand in its file; ``sentence``: what they are worth."""

    name: str
    id: str
    version: int
    threshold: float | None
    unsure_threshold: float | None
    pixel_threshold: float | None
    stale: bool
    sentence: str | None


class ReviewImages(TypedDict):
    """The images of the data set, a column for each property; all columns are in one order.

    ``key``: another one each time that the data set is read. ``names``: in the data set's folder. ``labels``: 0 good,
    1 bad, null unknown. ``types``: of defects. ``roles``: what the data set has the image for. ``times``: when the file
    was changed, in seconds since 1970. ``notes``: files that are not used.
    """

    key: str
    name: str
    names: list[str]
    labels: list[int | None]
    types: list[str | None]
    groups: list[str | None]
    roles: list[str]
    times: list[float | None]
    notes: list[str]


class ReviewScores(TypedDict):
    """What a model gave the images since the last time; ``key`` is null while the data set is being read.

    ``images`` and ``scores`` belong together, a score is null where the image cannot be judged, for the reason in
    ``errors``. ``next``: what to give as ``after`` the next time. ``outside``: images by which the model is not judged,
    because it was taught by them or may have been; null until that is known, and in later answers. ``left_out``: the
    same in words.
    """

    key: str | None
    model: ReviewThresholds
    stage: Stage
    error: str | None
    done: int
    total: int
    images: list[int]
    scores: list[float | None]
    errors: dict[int, str]
    next: int
    outside: list[int] | None
    left_out: list[str]


class Promised(TypedDict):
    """Thresholds that keep a promise, in words; or, where there are too few good images, what can be promised.

    ``possible``: the least share of false alarms that these images can promise, null where nothing can be. ``needed``
    and ``have``: number of good images.
    """

    reachable: bool
    sentence: str
    threshold: float | None
    unsure_threshold: float | None
    needed: int | None
    have: int
    possible: float | None


class WrittenReport(TypedDict):
    """A report that is being written; ``name``: of the file that can be downloaded once it is ``ready``."""

    key: str
    name: str
    stage: str
    done: int
    total: int
    ready: bool
    error: str | None


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class PromiseWish(_Body):
    """Wish for thresholds: at most ``false_alarm`` of the good parts bad, and ``unsure`` more of them unsure."""

    promise: Literal["tolerance", "marginal", "estimate"] = "tolerance"
    false_alarm: float = Field(0.01, gt=0, lt=1)
    confidence: float = Field(0.95, gt=0, lt=1)
    unsure: float | None = Field(None, ge=1e-6, lt=1)

    def wish(self) -> Wish:
        """Return the wish as the calibration understands it."""
        return Wish(self.promise, self.false_alarm, self.confidence, unsure=self.unsure)


class ByHand(_Body):
    """Thresholds that somebody chose: bad above ``threshold``, unsure above ``unsure_threshold``, null: none unsure."""

    threshold: float
    unsure_threshold: float | None = None


class NewThresholds(_Body):
    """Thresholds to write into the model file: numbers, or a promise.

    ``version``: of the model that the person has seen; if it is another by now, nothing is written. ``user``: who does
    it, for the log.
    """

    version: int = Field(ge=1, lt=2**31)
    by_hand: ByHand | None = None
    promise: PromiseWish | None = None
    user: str | None = Field(None, max_length=200)


class ReportWish(_Body):
    """Wish for a report of images, by their numbers; ``key``: that of the data set as the person has seen it."""

    key: str = Field(max_length=20)
    images: list[int] = Field(min_length=1, max_length=MOST)


@router.get("/images")
def images(state: TheState) -> ReviewImages:
    """Return the images of the data set; 503 while they are being read."""
    data = _data(state.review)
    warning = data.dataset.account.warning(data.dataset.name)
    return {
        "key": data.key,
        "name": data.dataset.name,
        "names": list(data.names),
        "labels": [row.label for row in data.rows],
        "types": [row.defect for row in data.rows],
        "groups": [row.group for row in data.rows],
        "roles": [row.role for row in data.rows],
        "times": list(data.times),
        "notes": [] if warning is None else [warning],
    }


@router.get("/scores")
def scores(
    state: TheState,
    model: ModelName = None,
    after: Annotated[int, Query(ge=0, description="What the last answer said under next.")] = 0,
) -> ReviewScores:
    """Return the scores that have come since the last time; images are judged as long as somebody asks."""
    served = state.models.get(model)
    loaded = served.now
    review = state.review
    data, published = review.ask(loaded)
    if data is None or published is None:
        published = Published("", [], [], "reading" if review.error is None else "failed", error=review.error)
    order = published.order[after:]
    return {
        "key": None if data is None else data.key,
        "model": _thresholds(served, loaded),
        "stage": published.stage,
        "error": None if published.error is None else state.public(published.error),
        "done": len(published.order),
        "total": len(published.scores),
        "images": order,
        "scores": [published.scores[i] for i in order],
        "errors": {i: state.public(published.errors[i]) for i in order if i in published.errors},
        "next": after + len(order),
        "outside": None if after or published.outside is None else sorted(published.outside),
        "left_out": list(published.left_out),
    }


@router.post("/reload")
def reload(state: TheState) -> None:
    """Read the data set again: files were added, removed or changed. Scores of unchanged files stay."""
    state.review.reload()


@router.get("/images/{index}/thumbnail", response_class=Response, responses=_THUMBNAIL)
def thumbnail(
    state: TheState,
    index: Index,
    heat: Annotated[str | None, Query(description="Draw the heat map of this model over it.")] = None,
    key: Annotated[str | None, Query(max_length=20, description="Of /api/review/images: it may then be kept.")] = None,
) -> Response:
    """Return a small picture of an image."""
    loaded = None if heat is None else state.models.get(heat).now
    calibration = None if loaded is None else loaded.calibration
    content = state.review.picture(
        index,
        None if loaded is None else scores_key(loaded),
        None if calibration is None else calibration.pixel_threshold,
    )
    return Response(content, media_type="image/jpeg", headers={"cache-control": _kept(key)})


@router.get("/images/{index}/picture", response_class=Response, responses=_PICTURE)
def picture(state: TheState, index: Index, key: Annotated[str | None, Query(max_length=20)] = None) -> Response:
    """Return an image as browsers show it, at its full size: the file itself, or a PNG of 8 bits."""
    row = _data(state.review).row(index)
    kept = {"cache-control": _kept(key)}
    suffix = row.path.rpartition(".")[2].lower()
    pixels = row.image(state.settings.compute.max_pixels)  # a file that is no sound image is not handed on
    if row.pixels is None and suffix in _SHOWN and pixels.dtype == np.uint8:
        kind = "jpeg" if suffix == "jpg" else suffix
        return FileResponse(row.path, media_type=f"image/{kind}", headers=kept)
    return Response(png_of(display(pixels)), media_type="image/png", headers=kept)


@router.get("/images/{index}/judged")
def judged(state: TheState, index: Index, model: ModelName = None) -> Inspected:
    """Judge an image of the data set again, and return what ``POST /inspect`` returns, with the map."""
    data = _data(state.review)
    row, served = data.row(index), state.models.get(model)
    if row.pixels is None:
        row = replace(row, pixels=_content(row, data.names[index]))
    finish = partial(_inspected, served=served, data=data, index=index)
    with state.line.place():
        return state.line.judge(served, row, finish).result()


@router.post("/promise")
def promise(state: TheState, wish: PromiseWish, model: ModelName = None) -> Promised:
    """Find the thresholds that keep a promise about false alarms; nothing is written."""
    return _promised(state, state.models.get(model), wish)


@router.post("/thresholds")
def save_thresholds(state: TheState, new: NewThresholds, model: ModelName = None) -> ReviewThresholds:
    """Write thresholds into the model file, and into the log; 409 if somebody else has changed it since."""
    served = state.models.get(model)
    if new.by_hand is not None and new.promise is None:
        thresholds = new.by_hand.threshold, new.by_hand.unsure_threshold
        make = partial(change_by_hand, served.path, *thresholds)
    elif new.promise is not None and new.by_hand is None:
        make = partial(promised, _evidence(state, served), new.promise.wish())
    else:
        raise InputError("expected either thresholds by hand or a promise")
    with served.writing, alone(served.path):
        version = _version(served)
        if version != new.version:
            raise HTTPException(
                409,
                f"somebody else has changed this model meanwhile: it is version {version} now, and you saw version "
                f"{new.version}. Look at its thresholds, then save yours again.",
            )
        calibration = make()
        written = write_thresholds(served.path, calibration)
        loaded = served.reload()
        before, after = (_logged(written, when) for when in ("_before", ""))
        before["version"], note = version, calibration.sentence
        state.marks.log("thresholds", served.path.name, before, after, (new.user or "").strip() or None, note)
    return _thresholds(served, loaded)


@router.post("/reports")
def write_report(state: TheState, wish: ReportWish, model: ModelName = None) -> WrittenReport:
    """Have the report of images written, as ``pickglass test`` writes it."""
    data = _data(state.review)
    if wish.key != data.key:
        raise HTTPException(409, "the data set was read again meanwhile: choose the images again")
    chosen = [(data.row(i), data.names[i]) for i in dict.fromkeys(wish.images)]
    names = {row.path: name for row, name in chosen}
    served = state.models.get(model)
    report = state.reports.write(served.model, [row for row, _ in chosen], names, data.dataset.name)
    return report_state(state, report.key)


@router.get("/reports/{key}")
def report_state(state: TheState, key: str) -> WrittenReport:
    """Say how far a report is."""
    report = state.reports.get(key)
    return {
        "key": report.key,
        "name": report.name,
        "stage": report.stage,
        "done": report.done,
        "total": report.total,
        "ready": report.ready,
        "error": None if report.error is None else state.public(report.error),
    }


@router.get(
    "/reports/{key}/file",
    response_class=FileResponse,
    responses={200: {"content": {"text/html": {"schema": {"type": "string"}}}}},
)
def report_file(state: TheState, key: str) -> FileResponse:
    """Return a report that is ready, as a file to keep."""
    return FileResponse(state.reports.file(key), media_type="text/html", filename=state.reports.get(key).name)


def _data(review: Review) -> ReviewedData:
    """Return the images, for which a reader may have to wait a little."""
    data = review.wait(_PATIENCE)
    if data is not None:
        return data
    if review.error is not None:
        raise InputError(review.error)
    raise _reading()


def _reading() -> HTTPException:
    return HTTPException(503, "the data set is being read: try again in a moment", {"Retry-After": "1"})


def _content(row: Row, name: str) -> bytes:
    try:
        return Path(row.path).read_bytes()
    except OSError as error:
        raise ImageError(name, f"cannot be read ({error.strerror})") from error


def _kept(key: str | None) -> str:
    """An address with a key means the same picture for ever; another one may mean another picture next time."""
    return "no-cache" if key is None else "private, max-age=86400, immutable"


def _inspected(
    loaded: LoadedModel, item: Found | Failure, *, served: ServedModel, data: ReviewedData, index: int
) -> Inspected:
    name = data.names[index]
    if isinstance(item, Failure):
        raise ImageError(name, item.error)
    return inspected(loaded, item, served=served, name=name, picture=True)


def _thresholds(served: ServedModel, loaded: LoadedModel) -> ReviewThresholds:
    calibration = loaded.detector.current_calibration()
    return {
        "name": served.name,
        "id": loaded.id,
        "version": loaded.version,
        "threshold": loaded.threshold,
        "unsure_threshold": calibration.unsure_threshold if calibration else None,
        "pixel_threshold": calibration.pixel_threshold if calibration else None,
        "stale": bool(calibration and calibration.stale),
        "sentence": (calibration.sentence or None) if calibration else None,
    }


def _logged(written: ThresholdResult, when: Literal["_before", ""]) -> dict[str, Any]:
    """Return a model as the log keeps it."""
    return {
        "id": written["model_id"],
        "version": written["model_version"],
        **{name: cast("dict[str, Any]", written)[f"{name}{when}"] for name in _LOGGED},
    }


def _version(served: ServedModel) -> int:
    """Return the version of the model that lies in the file right now."""
    read = read_export_header if served.path.suffix == ".onnx" else read_model_header
    return int(read(served.path).get("version", 1))


def _evidence(state: State, served: ServedModel) -> Evidence:
    """Return the good images that a promise rests on."""
    data, published = state.review.ask(served.now)
    if data is None or published is None:
        raise _reading()
    places = {row.path: i for i, row in enumerate(data.rows)}

    def known(rows: Table) -> JudgedGood:
        scores, peaks, lacking = [], [], []
        for row in rows:
            i = places[row.path]
            score, peak = published.scores[i], published.peaks[i]
            if score is None or peak is None:
                lacking.append(Failure(data.names[i], published.errors.get(i, "not judged yet")))
            else:
                scores.append(score)
                peaks.append(peak)
        if lacking:
            raise DataError(
                f"{len(lacking)} of {len(rows)} good images for the threshold are not judged, e.g. "
                f"{lacking[0].path}: {lacking[0].error}"
            )
        return JudgedGood(scores, peaks)

    return good_evidence(served.path, state.review.source.placed(data.dataset.train), known)


def _promised(state: State, served: ServedModel, asked: PromiseWish) -> Promised:
    wish = asked.wish()
    evidence = _evidence(state, served)
    try:
        found: Calibration = promised(evidence, wish)
    except PromiseUnreachable as error:
        have = error.needed - error.missing
        return {
            "reachable": False,
            "sentence": _unreachable(evidence, wish, error),
            "threshold": None,
            "unsure_threshold": None,
            "needed": error.needed,
            "have": have,
            "possible": _possible(wish, have),
        }
    return {
        "reachable": True,
        "sentence": found.sentence,
        "threshold": found.image_threshold,
        "unsure_threshold": found.unsure_threshold,
        "needed": None,
        "have": found.n,
        "possible": None,
    }


def _possible(wish: Wish, have: int) -> float | None:
    """Return the least share that so many good images can promise."""
    if have == 0:
        return None
    least = rounded_up(wish.bound(have, 0))
    return least if least + (wish.unsure or 0.0) < 1 else None


def _unreachable(evidence: Evidence, wish: Wish, error: PromiseUnreachable) -> str:
    have = error.needed - error.missing
    surely = f" with {100 * wish.confidence:g} % confidence" if wish.promise == "tolerance" else ""
    what = f"At most {percent(wish.false_alarm)} false alarms{surely}"
    if have == 0:
        return (
            f"{what} cannot be promised: all good images that are known taught the model. Ask for an estimate, or add "
            "good images that it has not seen."
        )
    units = "groups of good images" if evidence.grouped else "good images"
    possible = _possible(wish, have)
    less = "" if possible is None else f" These {have} can promise {percent(possible)}."
    return f"{what} takes {error.needed} {units} that the model has not seen; there are {have}.{less}"
