"""Marked images teach a model: an update in the background, before and after, and one click to take it or leave it.

``GET /api/teach/marks`` says what an update would use, and which images are missing; ``POST /api/teach`` begins one,
``GET /api/teach/{id}`` says how far it is and what came of it, and ``/take``, ``/leave`` and ``/stop`` decide.
``GET /api/audit`` is the log of all that was done to models.
"""

from __future__ import annotations

from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi import Path as PathParameter
from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from pickglass.app.marking.teach import Job, JobState, lab_model_of
from pickglass.errors import InputError, PickglassError, UnknownName
from pickglass.web.marks import MarkAbout, about_mark
from pickglass.web.places import Place
from pickglass.web.state import State, TheState

__all__ = [
    "AuditList",
    "AuditRow",
    "Decision",
    "JobAbout",
    "JobList",
    "JobOutcome",
    "MissingImage",
    "ModelThen",
    "NewJob",
    "TaughtImage",
    "UsableMarks",
]

router = APIRouter(prefix="/api", tags=["teach"])

Identity = Annotated[str, PathParameter(max_length=40, description="Name of the job.")]
_MOST = 20  # jobs in a list


class MissingImage(TypedDict):
    """A marked image that is not there, or is another one than it was."""

    sha256: str
    name: str
    error: str


class UsableMarks(TypedDict):
    """What an update of a model would use now.

    ``good`` are learned, ``bad`` guard, ``unsure`` are left alone; ``disputed`` ones are among these. ``problem``: why
    the model cannot be taught here; null if it can.
    """

    model: str
    good: int
    bad: int
    unsure: int
    disputed: list[MarkAbout]
    missing: list[MissingImage]
    problem: str | None


class ModelThen(TypedDict):
    """A model as it was at some time."""

    id: str
    version: int
    image_threshold: float | None
    unsure_threshold: float | None
    pixel_threshold: float | None


class TaughtImage(TypedDict):
    """A marked image before and after.

    ``judged``: ``learned``; ``left out`` or ``held back``, which were judged as if they had not been; ``known`` from
    before; ``bad``; ``unsure``.
    """

    sha256: str
    place: Place | None
    name: str
    mark: str | None
    type: str | None
    score_before: float
    verdict_before: str | None
    score: float
    verdict: str | None
    judged: str


class JobOutcome(TypedDict):
    """What came of an update.

    ``lost``: known bad images that were found before and would be missed. ``sentence``: what the new threshold is
    worth. ``false_alarms`` count good images that are called bad, ``bad_found`` bad ones; null without any, or without
    thresholds.
    """

    before: ModelThen
    after: ModelThen
    images: list[TaughtImage]
    learned: int
    known: int
    held_back: int
    lost: list[str]
    suspicious: list[str]
    learned_bad: list[str]
    sentence: str
    false_alarms_before: int | None
    false_alarms: int | None
    bad_found_before: int | None
    bad_found: int | None
    notes: list[str]


class JobAbout(TypedDict):
    """An update: how far it is, what came of it, and ``decided``: what, by whom and when."""

    id: str
    state: JobState
    model: str
    user: str | None
    started: str
    stage: str | None
    done: int
    total: int
    error: str | None
    outcome: JobOutcome | None
    decided: dict[str, str | None] | None


class JobList(TypedDict):
    """The last updates of a model, the last one first."""

    jobs: list[JobAbout]


class AuditRow(TypedDict):
    """Something was done to a model: thresholds set, an update taken or left."""

    number: int
    time: str
    what: str
    model: str
    user: str | None
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    note: str | None


class AuditList(TypedDict):
    """The log, last things first."""

    entries: list[AuditRow]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class NewJob(_Body):
    """Update a served model, null: the first, with the marks; ``leave_out``: images that are not used."""

    model: str | None = Field(None, max_length=500)
    user: str | None = Field(None, max_length=100)
    leave_out: list[Annotated[str, Field(pattern="^[0-9a-f]{64}$")]] = Field(default_factory=list, max_length=100_000)


class Decision(_Body):
    """Somebody decides; ``lost_is_known``: they have seen which bad images would be missed."""

    user: str | None = Field(None, max_length=100)
    lost_is_known: bool = False


ModelName = Annotated[str | None, Query(max_length=500, description="A served model; by default the first.")]


@router.get("/teach/marks")
def usable(state: TheState, model: ModelName = None) -> UsableMarks:
    """Say what an update of a model would use now, and what is missing."""
    served = state.models.get(model)
    marks = state.marks.current()
    there, absent = state.places.located(marks)
    counts = {word: sum(mark.counts_as == word for mark in there) for word in ("good", "bad", "unsure")}
    problem = None
    try:
        lab_model_of(served.path)
    except PickglassError as error:
        problem = state.places.public(str(error))
    return {
        "model": served.name,
        "good": counts["good"],
        "bad": counts["bad"],
        "unsure": counts["unsure"],
        "disputed": [about_mark(state, mark) for mark in marks if mark.disputed],
        "missing": [
            {"sha256": mark.digest, "name": state.places.shown(mark.path).name, "error": error}
            for mark, error in absent
        ],
        "problem": problem,
    }


@router.get("/teach")
def jobs(state: TheState, model: ModelName = None) -> JobList:
    """List the last updates of a model."""
    path = state.models.get(model).path
    return {"jobs": [_about(state, job) for job in islice(state.teaching.jobs(path), _MOST)]}


@router.post("/teach")
def begin(new: NewJob, state: TheState) -> JobAbout:
    """Begin to update a model with the marked images."""
    served = state.models.get(new.model)
    there, absent = state.places.located([m for m in state.marks.current() if m.digest not in new.leave_out])
    if absent:
        named = ", ".join(state.places.shown(mark.path).name for mark, _ in absent[:3])
        raise InputError(
            f"{len(absent)} marked images are not there as they were marked, e.g. {named}: bring them back, mark them "
            "again, or leave them out"
        )
    return _about(state, _publicly(state, lambda: state.teaching.start(served.path, new.user, (), there)))


@router.get("/teach/{job}")
def look(job: Identity, state: TheState) -> JobAbout:
    """Say how far an update is, and what came of it."""
    return _about(state, state.teaching.get(job))


@router.post("/teach/{job}/take")
def take(job: Identity, decision: Decision, state: TheState) -> JobAbout:
    """Replace the model by what came of the update; from then on it judges."""
    with ExitStack() as writing:  # an exported model and the model file behind it may both be served
        for served in state.models:
            writing.enter_context(served.writing)
        taken = _publicly(state, lambda: state.teaching.take(job, decision.user, decision.lost_is_known))
        for served in state.models:
            if str(served.path.absolute()) == taken.model:
                served.reload()
    return _about(state, taken)


@router.post("/teach/{job}/leave")
def leave(job: Identity, decision: Decision, state: TheState) -> JobAbout:
    """Leave the model as it is."""
    return _about(state, _publicly(state, lambda: state.teaching.leave(job, decision.user)))


@router.post("/teach/{job}/stop")
def stop(job: Identity, state: TheState) -> JobAbout:
    """End an update that is running; the model stays as it is."""
    return _about(state, _publicly(state, lambda: state.teaching.stop(job)))


@router.get("/audit")
def audit(state: TheState) -> AuditList:
    """Return the log of all that was done to models."""
    names = AuditRow.__annotations__
    entries = [entry._asdict() for entry in reversed(state.marks.audit())]
    return {"entries": [{name: entry[name] for name in names} for entry in entries]}  # type: ignore[misc]


def _publicly(state: State, action: Any) -> Job:
    """Do something; what is said of errors has no folders of this machine."""
    try:
        done: Job = action()
    except InputError as error:
        if isinstance(error, UnknownName):
            raise
        raise InputError(state.places.public(str(error))) from error
    return done


def _about(state: State, job: Job) -> JobAbout:
    return {
        "id": job.id,
        "state": job.state,
        "model": next((s.name for s in state.models if str(s.path.absolute()) == job.model), Path(job.model).name),
        "user": job.user,
        "started": job.started,
        "stage": job.stage,
        "done": job.done,
        "total": job.total,
        "error": None if job.error is None else state.places.public(job.error),
        "outcome": None if job.result is None else _outcome(state, job.result),
        "decided": job.decided,
    }


def _outcome(state: State, result: dict[str, Any]) -> JobOutcome:
    update, public = result["update"], state.places.public
    paths = {mark.digest: mark.path for mark in state.marks.everything()}
    images: list[Any] = []
    for one in result["images"]:
        shown = state.places.shown(paths[one["sha256"]]) if one["sha256"] in paths else None
        place, name = (None, one["sha256"][:16]) if shown is None else shown
        images.append({**{key: value for key, value in one.items() if key != "path"}, "place": place, "name": name})
    return {
        "before": result["before"],
        "after": result["after"],
        "images": images,
        "learned": update["learned"],
        "known": update["known"],
        "held_back": update["held_back"],
        "lost": [public(path) for path in update["bad_lost"]],
        "suspicious": [public(one["path"]) for one in update["suspicious"]],
        "learned_bad": [public(path) for path in update["marks"]["learned_bad"]],
        "sentence": public(update["sentence"]),
        "false_alarms_before": update["false_alarms_before"],
        "false_alarms": update["false_alarms"],
        "bad_found_before": update["bad_found_before"],
        "bad_found": update["bad_found"],
        "notes": [public(note) for note in result["notes"]],
    }
