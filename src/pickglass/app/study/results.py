"""What ``pickglass advise`` and ``study`` print with ``--json``, and the rows that ``--preset auto`` leaves in a model;
see also :mod:`pickglass.app.results`."""

from __future__ import annotations

from typing import TypedDict

__all__ = ["AblationRow", "AdviseResult", "Advised", "RuledOut", "StudyCell", "StudyResult"]


class Advised(TypedDict):
    """One way to look at the images that ``pickglass advise`` judged, the highest AUPRO@0.05 first.

    ``size`` is [H, W] of the network's input, of the canvas where there is a ``tile``. ``aupro_05`` and ``image_auroc``
    are those of the painted defects, with [low, high] of their 95 % intervals. ``gain``: in AUPRO@0.05 over what
    ``fit`` takes untold, null where there is none. ``by_contrast``: contrast of the defects -> AUPRO@0.05.
    ``latency_ms`` and ``model_mb`` were measured on this machine where ``measured``, else the
    latency is estimated from the backbone's and the memory null. ``peak_mb``: of the whole process. ``too_slow``:
    beyond ``--latency-ms``. ``command`` fits it.
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
    """What geometry alone excludes; ``layers`` names the backbone too, null where the size itself is out."""

    layers: str | None
    size: list[int]
    why: str


class AdviseResult(TypedDict):
    """``pickglass advise``. ``command``: of the choice, one of the ranking, null if there is none; ``why`` it is that.

    ``limits``: what this advice cannot promise, a sentence each. ``n_fit`` images taught, on ``n_held`` others
    ``n_painted`` defects were painted.
    """

    command: str | None
    why: str
    ranking: list[Advised]
    ruled_out: list[RuledOut]
    limits: list[str]
    defect_px: float
    defect_mm: float | None
    image: list[int]
    n_fit: int
    n_held: int
    n_painted: int
    seconds: float
    report: str | None


class AblationRow(TypedDict):
    """One part of ``preset="auto"``: what was ``tried``, the ``best`` of it and whether it was ``taken``.

    ``gain``: of ``metric`` on painted defects against going without it, with the 95 % ``interval`` paired by image;
    null where nothing could be tried.
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
    """One cell of ``pickglass study``: ``state`` is waiting, claimed (another process has it), done, failed or missing
    (its weights were not found). ``command`` does this cell again; null unless it failed or lacks its weights.
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
    """``pickglass study``. ``n`` cells, and how many are in which state; ``waiting`` counts those that another process
    has. ``estimate_s``: seconds of what is to be done, null unless ``--dry-run``. ``left_out``: combinations without
    published weights.
    """

    file: str
    n: int
    done: int
    failed: int
    missing: int
    waiting: int
    estimate_s: float | None
    left_out: list[str]
    cells: list[StudyCell]
    csv: str | None
    report: str | None
