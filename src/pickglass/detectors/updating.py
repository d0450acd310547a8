"""A fitted detector learns further good images on top of what it has learned, and its thresholds are set anew.

The images of the fit need not be at hand. What is kept of them is what the method learned: PatchCore chooses its bank
anew from the bank and the new patches, PaDiM goes back from its Gaussians to their sums and adds to them, and what was
trained is trained on, for a quarter of the time at a tenth of the learning rate. What a training forgets of parts as
they were can only be held by showing it some of them again (``earlier``). Backbone, canvas, tiles, layers that were
fused and what is usual at each place of the map stay as the fit left them.

The new images are learned and judged as in a fit: each as if it had been left out, where the method can do that, and
otherwise some are held back. How thresholds follow is in :mod:`pickglass.calibration.renewal`. The reference of
``pickglass drift`` keeps its images and gets the new ones that were judged; scores of the earlier ones are dropped, for
the updated model would give others.

Everything happens on a copy of the detector: an update that fails leaves it as it was.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any

import torch

from pickglass.calibration import Calibration, Change, Evidence
from pickglass.calibration.renewal import renewed
from pickglass.data import Row, Table, fingerprint, image_digest, known_names, short_names, split_roles
from pickglass.detectors.fitting import (
    FitPlan,
    Judge,
    check_meaning,
    checked,
    drawn_to_leave_out,
    good_rows,
    numbered,
    peaks_of,
    teach,
)
from pickglass.detectors.loading import FeatureLoader
from pickglass.detectors.method import FitContext, Judged, Method
from pickglass.errors import DataError
from pickglass.runtime.provenance import Provenance

__all__ = ["update"]

_HELD_BACK = 0.25  # of the new images, for the thresholds: a tenth of twenty would be two


@dataclass(frozen=True)
class _Images:
    """The images of an update.

    Attributes:
        new: rows that were not learned before, with the roles fit, validate and calibrate.
        again: earlier images that are trained on again, with the roles fit and validate.
        fresh: earlier images that say how parts as they were are judged now.
        fresh_learned: these were learned, and each is judged as if it had been left out; otherwise they never were.
        independent: the new rows of which no part was learned before.
        left_out: each new image is judged as if it had been left out.
        known: how many of the images given were learned before.
        dropped: how many of them the fit left out as suspicious.
        unused: how many earlier images are neither trained on nor judged: what they show is in the model.
    """

    new: Table
    again: Table
    fresh: Table
    fresh_learned: bool
    independent: frozenset[Row]
    left_out: bool
    known: int
    dropped: int
    unused: int


def update(method: Method, loader: FeatureLoader, data: Any, earlier: Any, plan: FitPlan) -> None:
    """Learn further images; see :meth:`pickglass.Detector.update`.

    Args:
        method: a copy of the detector, which shares what an update leaves alone.
        loader: as for :func:`pickglass.detectors.fitting.calibrate`.
        data, earlier: as there.
        plan: shares of the roles, seed, memory, observers and progress.
    """
    if type(method).begin_update is Method.begin_update:
        method.begin_update(FitContext(0, [], 0, 0, 0.0, plan.progress))  # it says that it cannot
    before = method.provenance
    given = before.within_regions(good_rows(data))
    old = Table([]) if earlier is None else before.within_regions(_named_apart(good_rows(earlier)))
    _, loader.ready = checked(given + old, method.preprocess, loader.roi, plan.memory_gb / 4, loader.compute)
    images = _divided(method, given, old, plan)
    new = images.new
    for observer in plan.observers:
        new = observer.prepared(new, loader, plan.progress)
    images = replace(images, new=new)
    _check_number(method, images)
    method.go_on_from(method.head_state(), method.level_shapes(), method.tiles.heads if method.tiles else 1)
    plan = replace(plan, before=max(1, before.n_fit))
    details = teach(method, loader, images.new.role("fit", "validate") + images.again, plan, "update")
    method.eval()
    calibration = _calibrated(method, Judge(loader, plan), images, plan.seed)
    method.forget_images()
    change = Change.between("update", method.calibration, calibration)
    method.history += (replace(change, learned=len(images.new.role("fit"))),)
    method.calibration, method._file_id = calibration, None
    method.provenance = _told(before, images, details, plan)
    if method.reference is not None:
        method.reference = method.reference.without_scores()
    for observer in plan.observers:
        observer.fitted(method)


def _named_apart(table: Table) -> Table:
    """Return the rows with other names for images in memory: these are numbered anew in each call."""
    return Table([row if row.pixels is None else replace(row, path=f"earlier {row.path}") for row in table])


def _divided(method: Method, given: Table, before: Table, plan: FitPlan) -> _Images:
    """Tell new images from those that are known, and divide them into roles."""
    provenance = method.provenance
    trusted = provenance.without_left_out(given)
    learned = set(provenance.fitted_images or ())
    digests = {row: image_digest(row)[:16] for row in (*trusted, *before)}
    new = Table([replace(row, role="train") for row in dict.fromkeys(trusted) if digests[row] not in learned])
    if not new:
        others = len(given) - len(trusted)
        also = f", and {others} the fit left out as suspicious" if others else ""
        raise DataError(
            f"there is no new image: {len(trusted)} of {len(given)} were learned before{also}. Give good images that "
            "the model has not learned"
        )
    independent = {row.path for row in provenance.unseen(trusted)}
    parted = Table([row if row.path in independent else replace(row, role="fit") for row in new])
    left_out = plan.calibrate is None and _can_leave_out(method, parted)
    share = 0.0 if left_out else _HELD_BACK if plan.calibrate is None else plan.calibrate
    parted = split_roles(parted, 0.0, share, plan.seed)
    mine = {digests[row] for row in trusted}
    old = provenance.without_left_out(before).where(lambda row: digests[row] not in mine)
    again = old.where(lambda row: digests[row] in learned) if method.trains else Table([])
    fresh = old.where(lambda row: digests[row] not in learned)
    fresh_learned = left_out and method.leaves_out_known and len(fresh) < len(old) - len(fresh)
    if fresh_learned:
        fresh = old.where(lambda row: digests[row] in learned)
    if method.trains:
        taught = Table([replace(row, role="train") for row in (*parted.role("fit"), *again)])
        taught = split_roles(taught, plan.validate, 0.0, plan.seed)
        n = len(parted.role("fit"))
        parted, again = taught[:n] + parted.role("calibrate"), taught[n:]
    return _Images(
        parted,
        again,
        fresh,
        fresh_learned,
        frozenset(row for row in parted if row.path in independent),
        left_out,
        len(trusted) - len(new),
        len(given) - len(trusted),
        len(before) - len(again) - len(fresh),
    )


def _can_leave_out(method: Method, new: Table) -> bool:
    """Whether each new image can be judged as if it had been left out; those of the fit count as learned, too."""
    if type(method).score_left_out is Method.score_left_out:
        return False
    if method.tiles is not None and method.tiles.heads != method.tiles.n:
        return False
    units = numbered(new)
    before = range(-method.provenance.n_fit, 0)
    return method.leaves_out((*before, *units))


def _check_number(method: Method, images: _Images) -> None:
    """Raise where too few new images are left to learn from and to judge."""
    fit, validate = (len(images.new.role(role)) + len(images.again.role(role)) for role in ("fit", "validate"))
    held = images.new.role("fit", "calibrate") if images.left_out else images.new.role("calibrate")
    judged = [row for row in held if row in images.independent]
    if images.new.role("fit") and judged and (validate or not (method.trains and method.uses_validation)):
        return
    parts = ["1 to learn"]
    parts += ["1 to validate"] if method.trains and method.uses_validation and validate < 1 else []
    parts += [] if images.left_out else ["1 for the thresholds"]
    raise DataError(
        f"{len(images.new)} new images are too few to update {type(method).__name__}: {fit} are left to learn, "
        f"{len(judged)} of parts that it does not know to set the thresholds by. At least {len(parts)} images of "
        f"different new parts are needed ({', '.join(parts)}): give more"
    )


def _calibrated(method: Method, judge: Judge, images: _Images, seed: int) -> Calibration:
    """Judge new images that were held back or are left out, and earlier ones that were never learned."""
    with torch.no_grad():
        if images.left_out:
            fit = images.new.role("fit")
            drawn, units = drawn_to_leave_out(fit, seed)
            kept = [i for i, row in enumerate(drawn) if row in images.independent]
            rows, own = Table([drawn[i] for i in kept]), tuple(units[i] for i in kept)
            new = judge([method], rows, own, leave_out=True, watched=True)[method]
        else:
            new = judge([method], images.new.role("calibrate"), watched=True)[method]
        check_meaning(method, new)
        earlier = None
        if images.fresh:
            earlier = judge([method], images.fresh, leave_out=images.fresh_learned, watched=True)[method]
    return renewed(
        method.calibration,
        _evidence(method, new, images.left_out),
        None if earlier is None else _evidence(method, earlier, images.fresh_learned),
        comparable=method.scores_stay,
        monotone=method.falls_with_images,
        names=short_names([row.path for row in new.rows]),
    )


def _evidence(method: Method, judged: Judged, left_out: bool) -> Evidence:
    groups = [row.group for row in judged.rows]
    source = "left out" if left_out else "given"
    digest = method.settings_digest()
    return Evidence(judged.scores.tolist(), peaks_of(judged).tolist(), groups, source, settings=digest)  # type: ignore[arg-type]


def _told(known: Provenance, images: _Images, details: dict[str, Any], plan: FitPlan) -> Provenance:
    """Return the provenance with what the update learned."""
    new = images.new
    counts = {role: len(new.role(role)) for role in ("fit", "validate", "calibrate")}
    told = {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "learned": counts["fit"],
        "validated": counts["validate"],
        "held_back": counts["calibrate"],
        "left_out_judged": images.left_out,
        "known": images.known,
        "left_out": images.dropped,
        "trained_again": len(images.again),
        "earlier_judged": len(images.fresh),
        "earlier_unused": images.unused,
        "seed": plan.seed,
        "details": details,
    }
    digests = [image_digest(row)[:16] for row in new.role("fit", "validate")]
    names = known_names([row.path for row in new.role("fit")])
    both = f"{known.data_sha256} {fingerprint(new)}"  # images of the fit alone are not those of this model any more
    return replace(
        known,
        n_fit=known.n_fit + counts["fit"],
        n_validate=known.n_validate + counts["validate"],
        n_calibrate=known.n_calibrate + counts["calibrate"],
        data_sha256=hashlib.sha256(both.encode()).hexdigest(),
        fitted_images=None if known.fitted_images is None else (*known.fitted_images, *digests),
        image_names=(*(known.image_names or (None,) * known.n_fit), *names),
        updates=(*(known.updates or ()), told),
    )
