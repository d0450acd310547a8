"""A model is judged on the images that it was not fitted on; what is left out is counted, with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from pickglass.app.threshold import split_as_fitted
from pickglass.data import Dataset, Table
from pickglass.runtime.provenance import Provenance

__all__ = ["Selection", "select", "sentences"]

_DIVIDED = "for training or validation, as the data set divides them"
_OWN = "that the model was fitted on or that set its threshold"
_FITTED = "that the model was fitted on, or of the same part or roll"
_KNOWN = "that the model was shown as known defects, or of the same part or roll"
_MAYBE = "that were drawn for training, as the model does not tell what it was fitted on"


class Selection(NamedTuple):
    """These images are judged, and these numbers of images are not, by the reason."""

    table: Table
    left_out: dict[str, int]


def select(dataset: Dataset, models: Sequence[Provenance]) -> Selection:
    """Choose the images of a data set that judge models.

    Where the data set has a test part of its own, that is judged; where pickglass drew one, all images are. Images that
    one of the models was fitted on, or shown as known defects, are left out.

    Args:
        dataset: with or without training images.
        models: where the models come from; all of them are judged on the same images.
    """
    left_out: dict[str, int] = {}
    table = dataset.test
    if dataset.train:
        reason = _DIVIDED if not dataset.drawn else _reason(dataset, models)
        if reason is None:
            table = dataset.table
        else:
            left_out[reason] = len(dataset.train)
    fresh = table
    for provenance in models:
        fresh = fresh.unseen_by(provenance.defect_digests)
    if len(fresh) < len(table):
        left_out[_KNOWN] = len(table) - len(fresh)
    unseen = fresh
    for provenance in models:
        unseen = provenance.unseen(unseen)
    if len(unseen) < len(fresh):
        left_out[_FITTED] = len(fresh) - len(unseen)
    return Selection(Table([replace(row, role="test") for row in unseen]), left_out)


def _reason(dataset: Dataset, models: Sequence[Provenance]) -> str | None:
    """Say why the images that were drawn for training cannot judge the models; None if they can."""
    for provenance in models:
        if provenance.fitted_images is None:
            return _MAYBE
        if split_as_fitted(dataset.train, provenance) is not None:
            return _OWN
    return None


def sentences(left_out: dict[str, int]) -> list[str]:
    """Say in sentences how many images are left out and why."""
    return [f"{n} {'image is' if n == 1 else 'images are'} not judged: {reason}." for reason, n in left_out.items()]
