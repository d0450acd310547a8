"""Nothing reads test images during fit, validation or calibration, nor calibration images before the end: each role is
poisoned in turn, and every image that is decoded for the network is recorded."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pickglass.app.fit import FitRequest, fit
from pickglass.app.threshold import ThresholdRequest, threshold
from pickglass.data import Decoded, Role, Row, Table
from pickglass.data.images import decoder as images
from pickglass.detectors.loading import FeatureLoader, LoadedBatch
from pickglass.methods import PatchCore
from pickglass.runtime.compute import ComputeOptions
from pickglass.testing import textures

QUICK: dict[str, Any] = {"size": 64, "ratio": 0.05}
ROLES: tuple[Role, ...] = ("fit", "validate", "calibrate", "test")
Read = list[tuple[Role, bool]]


def table(changed: Role | None = None) -> Table:
    """Six images of each role; those of the role ``changed`` are other ones."""
    usual, other = textures(24, 64, seed=0), textures(24, 64, seed=1)
    rows = []
    for i in range(24):
        role = ROLES[i % 4]
        pixels = other[i] if role == changed else usual[i]
        rows.append(Row(f"array:{i}", role, None if role == "test" else 0, pixels=pixels))
    return Table(rows)


def learned(rows: Table) -> PatchCore:
    return PatchCore(**QUICK).fit(rows, workers=1, engine="torch")


@pytest.fixture(scope="module")
def clean() -> PatchCore:
    return learned(table())


def head(detector: PatchCore) -> dict[str, np.ndarray[Any, Any]]:
    return {name: tensor.numpy() for name, tensor in detector.state_dict().items()}


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Read:
    """What is decoded, and what reaches the network, in order: the row's role, and whether it is the latter."""
    seen: Read = []
    batches = FeatureLoader.batches

    def batch(loader: FeatureLoader, rows: Table, features: bool = True) -> Iterator[LoadedBatch]:
        for loaded in batches(loader, rows, features):
            seen.extend((item.row.role, True) for item in loaded.items)
            yield loaded

    monkeypatch.setattr(FeatureLoader, "batches", batch)
    original: Callable[..., Decoded[Any, Any]] = images._decode_row

    def recording(row: Row, prepare: Callable[..., Any], max_pixels: int) -> Decoded[Any, Any]:
        seen.append((row.role, False))
        return original(row, prepare, max_pixels)

    monkeypatch.setattr(images, "_decode_row", recording)
    return seen


def test_roles_are_read_in_their_turn(read: Read) -> None:
    learned(table())
    assert "test" not in {role for role, _ in read}
    for_network = [role for role, network in read if network]
    # each image is learned, then judged as if left out, for what is usual at its places; PatchCore validates nothing
    assert for_network == [*["fit"] * 12, *["calibrate"] * 6]


@pytest.mark.parametrize("role", ["validate", "calibrate", "test"])
@pytest.mark.slow
def test_a_poisoned_role_changes_nothing_that_was_learned(clean: PatchCore, role: Role) -> None:
    poisoned = learned(table(role))
    first, second = head(clean), head(poisoned)
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert (clean.calibration == poisoned.calibration) == (role != "calibrate")


def test_the_images_to_fit_do_matter(clean: PatchCore) -> None:
    """The poison works: where it may act, it does."""
    poisoned = learned(table("fit"))
    assert any(not np.array_equal(a, b) for a, b in zip(head(clean).values(), head(poisoned).values(), strict=True))


def test_test_images_may_be_missing_or_broken(clean: PatchCore) -> None:
    rows = [replace(row, path="no-such-file.png", pixels=None) if row.role == "test" else row for row in table()]
    without = learned(Table(rows))
    assert all(np.array_equal(a, b) for a, b in zip(head(clean).values(), head(without).values(), strict=True))
    assert clean.calibration == without.calibration


@pytest.mark.slow
def test_no_threshold_reads_test_images(small_dataset: Path, tmp_path: Path, read: Read) -> None:
    """On disk: every test image and mask is garbage, and nobody notices."""
    data = shutil.copytree(small_dataset, tmp_path / "tile")
    for part in ("test", "ground_truth"):
        for file in (data / part).rglob("*.png"):
            file.write_bytes(b"poison")
    model = tmp_path / "m.safetensors"
    torch = ComputeOptions(engine="torch")  # starts sooner than the others
    fit(data, model, FitRequest(settings=QUICK, calibrate=0.25), compute=torch)
    threshold(model, data, ThresholdRequest(false_alarm=0.6), compute=torch)
    threshold(model, data, ThresholdRequest(false_alarm=0.9, promise="marginal", pixel="area"), compute=torch)
    threshold(model, data, ThresholdRequest(false_alarm=0.6, promise="estimate", folds=2), compute=torch)
    assert len(read) > 3 * 16
    assert "test" not in {role for role, _ in read}
