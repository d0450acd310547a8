"""Test whether the images have changed since calibration, with a model and a batch of new images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from typing_extensions import Unpack

from pickglass.app.models import AnyModel, as_model
from pickglass.app.results import DriftChange, DriftResult, Failed
from pickglass.calibration.drift import Change, Drift, Sample, already_known, find_drift
from pickglass.data import Table, group_by, tables_at
from pickglass.errors import DataError, Failure, InputError
from pickglass.runtime.compute import ComputeArguments, ComputeOptions, Progress
from pickglass.runtime.exported import ExportedModel

__all__ = ["described", "drift", "main_change"]


def drift(
    model: str | Path | AnyModel,
    images: Sequence[str | Path] | Table,
    *,
    against: Sequence[str | Path] | Table | None = None,
    level: float = 0.05,
    group_pattern: str | None = None,
    seed: int = 0,
    compute: ComputeOptions | None = None,
    progress: Progress | None = None,
) -> DriftResult:
    """Compare new images with the good ones that were held back when the model was fitted.

    Images that the model was fitted on, reference images and images of their groups are left out of the new ones, for
    they would look too much at home. The test asks whether all images are of one kind: new images should be a fair
    sample of the parts, those with defects at the usual rate.

    Args:
        model: model file, or a fitted detector.
        images: new images, files and folders of them.
        against: good images to compare with in place of those in the model, likewise; fitted ones are left out.
        level: the chance of any alarm where nothing has changed, 0.001 to 0.5.
        group_pattern: regular expression that finds the part or roll in each file name, see
            :func:`pickglass.data.group_by`; of each one image counts.
        seed: decides the permutations, and which image speaks for its group.
        compute: where to compute.
        progress: called with (stage, done, total).

    Raises:
        PromiseUnreachable: too few images for that level; it says how many more are needed.
        DataError: no image is left, or a broken one among ``against``.
        InputError: the model has no reference, or was changed after the fit, and ``against`` is not given.
    """
    detector = as_model(model)
    run = (compute or ComputeOptions()).arguments()
    new_table = _table(images, group_pattern)
    if against is None:
        reference = _own_reference(detector, str(model) if isinstance(model, (str, Path)) else "the model")
    else:
        table = detector.provenance.unseen(_table(against, group_pattern))
        if not table:
            raise DataError("the model was fitted on all images to compare with: give good ones that it has not seen")
        reference, broken = described(detector, table, progress, **run)
        if broken:  # leaving them out might leave out the difficult ones
            raise DataError(f"{len(broken)} of {len(table)} images to compare with cannot be read:", broken)
    fresh = detector.provenance.unseen(new_table)
    new, failures = described(detector, fresh, progress, **run)
    repeated = already_known(reference, new)
    new, left_out = new.take(~repeated), len(new_table) - len(fresh) + int(repeated.sum())
    if not len(new):
        raise DataError(
            f"no new image is left: {left_out} of {len(new_table)} were fitted or are compared with, {len(failures)} "
            "cannot be read. Give images that were taken after the fit.",
            failures,
        )
    test = find_drift(reference, new, level, seed)
    failed: list[Failed] = [{"path": path, "error": error} for path, error in failures]
    return _result(test, len(new_table), left_out, failed)


def described(
    detector: AnyModel, table: Table, progress: Progress | None, **compute: Unpack[ComputeArguments]
) -> tuple[Sample, list[Failure]]:
    """Judge images and return what they are compared by, and those that cannot be read."""
    if isinstance(detector, ExportedModel):
        return detector.describe(table, progress=progress, **compute)
    from pickglass.detectors.drift_sample import describe

    return describe(detector, table, progress=progress, **compute)


def _table(images: Sequence[str | Path] | Table, pattern: str | None) -> Table:
    table = images if isinstance(images, Table) else tables_at(images)
    if not table:
        raise InputError("no image was named: expected files or folders of images")
    return table if pattern is None else group_by(table, pattern)


def _own_reference(detector: AnyModel, source: str) -> Sample:
    reference = detector.reference
    remedy = "name good images that it was not fitted on with --against"
    if reference is None or not len(reference):
        raise InputError(
            f"{source} has no images to compare with: it was fitted without any held back (--calibrate 0), by an older "
            "pickglass, or in Python without observers=[pickglass.DriftSample()]. Fit it anew with --calibrate 0.2, or "
            f"{remedy}"
        )
    if reference.settings != detector.settings_digest():
        raise InputError(f"the settings of {source} were changed after the fit, and so were its scores: {remedy}")
    return reference


# -- in words ---------------------------------------------------------------------------------------------------------


def _result(test: Drift, n_images: int, left_out: int, failed: list[Failed]) -> DriftResult:
    changes: list[DriftChange] = [
        {**change._asdict(), "how": _how(change, test.displacement)}  # type: ignore[typeddict-item]
        for change in test.changes
    ]
    most = main_change(test)
    return {
        "drift": test.found,
        "level": test.level,
        "n_images": n_images,
        "n_reference": test.n_reference,
        "n_new": test.n_new,
        "left_out": left_out,
        "most": most.what if most else None,
        "changes": changes,
        "displacement": None if test.displacement is None else list(test.displacement),
        "smallest_p": test.smallest_p,
        "detectable": test.detectable,
        "sentence": _sentence(test, most),
        "failed": failed,
    }


def main_change(test: Drift) -> Change | None:
    """Return the change that moved most surely, then by most; features and score, which are symptoms, come last."""
    moved = [change for change in test.changes if change.moved]
    symptoms = ("score", "features")
    return min(
        moved, key=lambda c: (c.what in symptoms, c.p, -abs(c.delta), -abs(c.difference or np.inf)), default=None
    )


def _sentence(test: Drift, most: Change | None) -> str:
    numbers = f"{test.n_new} new against {test.n_reference} reference images, level {100 * test.level:g} %"
    power = f"a change of {test.detectable:.1f} standard deviations in one property would be found four times in five"
    if most is None:
        return f"no drift found ({numbers}); {power}"
    others = [change for change in test.changes if change.moved and change is not most]
    more = "".join(f"; also {_what(change)}" for change in others)
    words = f"drift ({numbers}): {_what(most, test.displacement)}, moved most{more}"
    if {change.what for change in test.changes if change.moved} == {"score"}:
        words += ". Only the scores have moved: there may be more defective parts, or new ones"
    return f"{words}. Set the camera and the light as they were, or fit and calibrate on new good images"


def _what(change: Change, displacement: tuple[float, float] | None = None) -> str:
    if change.what == "features" or (change.what == "position" and displacement is None):
        return change.what
    if change.what == "position":
        return f"position, {_how(change, displacement)}"
    return f"{change.what}, {_how(change, None)} ({change.before:.3g} -> {change.now:.3g})"


_NEGLIGIBLE = 0.147  # of Cliff's delta (Romano et al. 2006)


def _how(change: Change, displacement: tuple[float, float] | None) -> str:
    if not change.moved:
        return "not surely"
    if change.what == "position":
        if displacement is None or max(map(abs, displacement)) < 0.002:
            return "elsewhere"
        down, right = displacement
        parts = [
            f"{100 * abs(share):.1f} % {words[share < 0]}"
            for share, words in ((down, ("down", "up")), (right, ("right", "left")))
            if abs(share) >= 0.002
        ]
        return f"by {' and '.join(parts)}"
    if change.what == "features":
        return "other"
    if abs(change.delta) < _NEGLIGIBLE:
        return "another spread"
    return "higher" if change.delta > 0 else "lower"
