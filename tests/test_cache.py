"""Cached readings: what comes out is what went in, wherever it lay; files come and go as promised."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pickglass.errors import InputError
from pickglass.features import cache as cache_module
from pickglass.features.batch import Batch
from pickglass.features.cache import FeatureCache, cache_key

N, P = 7, 2


def some_readings(keep_in: tuple[int, ...] = (), images: bool = True) -> list[Batch]:
    """N images in batches of 3, 3 and 1; ``keep_in`` are the batches with a mask."""
    torch.manual_seed(0)
    made = []
    for i, b in enumerate((3, 3, 1)):
        levels = (torch.randn(b, P, 4, 6, 5), torch.randn(b, P, 8, 3, 3))
        keep = torch.rand(b, P, 11, 9) > 0.5 if i in keep_in else None
        made.append(Batch(levels, torch.rand(b, P, 3, 11, 9) if images else None, keep))
    return made


def filled(readings: list[Batch], memory_gb: float, folder: Path | None = None, key: str | None = None) -> FeatureCache:
    cache = FeatureCache(N, memory_gb, folder, key)
    for batch in readings:
        cache.add(batch)
    return cache


def whole(readings: list[Batch], indices: list[int]) -> Batch:
    """The literal reference: everything concatenated, then indexed."""
    levels = tuple(torch.cat([r.levels[i] for r in readings])[indices] for i in range(2))
    images = None if readings[0].images is None else torch.cat([r.images for r in readings])[indices]
    masks = [torch.ones(len(r.levels[0]), P, 11, 9, dtype=torch.bool) if r.keep is None else r.keep for r in readings]
    keep = torch.cat(masks)[indices]
    return Batch(levels, images, None if keep.all() else keep)


def assert_same(found: Batch, expected: Batch) -> None:
    for one, other in zip(found.levels, expected.levels, strict=True):
        assert torch.equal(one, other)
    for one, other in ((found.images, expected.images), (found.keep, expected.keep)):
        assert (one is None) == (other is None)
        if one is not None:
            assert torch.equal(one, other)
            assert one.dtype == other.dtype


@pytest.mark.parametrize("memory_gb", [1.0, 0.0], ids=["memory", "file"])
@pytest.mark.parametrize("keep_in", [(), (0, 2), (1,)], ids=["all counts", "some from the start", "some later"])
@pytest.mark.parametrize("images", [True, False])
def test_comes_out_as_it_went_in(memory_gb: float, keep_in: tuple[int, ...], images: bool, tmp_path: Path) -> None:
    readings = some_readings(keep_in, images)
    with filled(readings, memory_gb, tmp_path) as cache:
        assert cache.where == ("memory" if memory_gb else "file")
        assert (cache.filled, len(cache)) == (True, N)
        for indices in ([0], [6, 0, 3, 3], list(range(N)), [1, 2]):
            assert_same(cache.read(indices), whole(readings, indices))
        assert_same(cache.read(range(2, 5)), whole(readings, [2, 3, 4]))


def test_what_is_read_is_the_callers_own() -> None:
    readings = some_readings()
    with filled(readings, 1) as cache:
        cache.read([0, 1]).levels[0].zero_()
        assert_same(cache.read([0, 1]), whole(readings, [0, 1]))
        readings[0].levels[0].zero_()
        assert cache.read([0]).levels[0].any()


def test_images_alone() -> None:
    images = torch.rand(3, 1, 3, 5, 5)
    with FeatureCache(3, 1) as cache:
        cache.add(Batch((), images))
        assert torch.equal(cache.read([2, 0]).images, images[[2, 0]])
        assert cache.read([1]).levels == ()


def test_the_size_is_known_after_the_first_reading() -> None:
    numbers = P * (4 * 6 * 5 + 8 * 3 * 3 + 3 * 11 * 9)
    bits = -(-P * 11 * 9 // 8)
    exact = N * (4 * numbers + bits)
    for memory_gb, where in ((exact / 1e9, "memory"), ((exact - 1) / 1e9, "file")):
        with FeatureCache(N, memory_gb) as cache:
            cache.add(some_readings((0,))[0])
            assert (cache.bytes, cache.where) == (exact, where)


def test_no_file_has_a_name_without_a_key(tmp_path: Path) -> None:
    with filled(some_readings((1,)), 0, tmp_path) as cache:
        assert cache.where == "file"
        assert list(tmp_path.iterdir()) == []


def test_a_completed_file_is_taken_over_and_removed_at_close(tmp_path: Path) -> None:
    readings = some_readings((1,))
    killed = filled(readings, 0, tmp_path, "k" * 64)  # not closed: as a killed run leaves it
    with FeatureCache(N, 0, tmp_path, "k" * 64) as cache:
        assert cache.filled
        assert (cache.where, cache.bytes) == ("file", killed.bytes + N * -(-P * 99 // 8))  # the mask came later
        assert_same(cache.read([6, 2, 4]), whole(readings, [6, 2, 4]))
    assert list(tmp_path.iterdir()) == []
    assert_same(killed.read([1]), whole(readings, [1]))  # a mapping outlives the name
    killed.close()


def test_incomplete_foreign_and_damaged_files_are_made_anew(tmp_path: Path) -> None:
    readings = some_readings((1,))
    key = "k" * 64
    unfinished = FeatureCache(N, 0, tmp_path, key)
    unfinished.add(readings[0])
    assert len(list(tmp_path.iterdir())) == 1  # the numbers, without the word that they are complete
    with FeatureCache(N, 0, tmp_path, key) as cache:
        assert not cache.filled
    assert list(tmp_path.iterdir()) == []

    for damage in ("sidecar", "format", "short", "other number of images", "other key"):
        left = filled(readings, 0, tmp_path, key)
        if damage == "sidecar":
            (tmp_path / f"{key}.json").write_text('{"format": 1')
        if damage == "format":
            text = (tmp_path / f"{key}.json").read_text()
            (tmp_path / f"{key}.json").write_text(text.replace('"format": 1', '"format": 0'))
        if damage == "short":
            os.truncate(next(tmp_path.glob("*.numbers")), 100)
        other = "j" * 64 if damage == "other key" else key
        with FeatureCache(N - (damage == "other number of images"), 0, tmp_path, other) as cache:
            assert not cache.filled, damage
        left.close()
        assert list(tmp_path.iterdir()) == []


def test_closing_leaves_another_runs_file(tmp_path: Path) -> None:
    first = FeatureCache(N, 0, tmp_path, "key")
    with filled(some_readings(), 0, tmp_path, "key"):
        first.close()
        with FeatureCache(N, 0, tmp_path, "key") as third:
            assert third.filled


def test_two_at_a_time_with_one_key_do_not_mix(tmp_path: Path) -> None:
    first, second = FeatureCache(N, 0, tmp_path, "key"), FeatureCache(N, 0, tmp_path, "key")
    for batch in some_readings():
        first.add(batch)
    second.add(some_readings()[0])
    third = FeatureCache(N, 0, tmp_path, "key")
    assert third.filled
    assert_same(third.read(range(N)), whole(some_readings(), list(range(N))))
    for cache in (first, second, third):
        cache.close()
    assert list(tmp_path.iterdir()) == []


def test_the_end_of_the_interpreter_removes_the_file(tmp_path: Path) -> None:
    code = f"""
import torch, pathlib
from pickglass.features.cache import FeatureCache
from pickglass.features.batch import Reading
cache = FeatureCache(2, 0, {str(tmp_path)!r}, "key")
cache.add(Reading((torch.zeros(2, 1, 3, 4, 4),)))
assert len(list(pathlib.Path({str(tmp_path)!r}).iterdir())) == 2
raise SystemExit(3)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 3
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_named_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = cache_module.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda _: usage)
    with (
        FeatureCache(N, 0, tmp_path) as cache,
        pytest.raises(InputError, match=r"features of 7 images take 27,384 bytes, 1,000 are free.*raise memory_gb by"),
    ):
        cache.add(some_readings()[0])


def test_a_disk_that_fills_up_meanwhile_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache_module, "_reserve", full)
    with FeatureCache(N, 0, tmp_path) as cache, pytest.raises(InputError, match="free the disk"):
        cache.add(some_readings()[0])


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        FeatureCache(N, 0, tmp_path / "missing")


def test_readings_that_do_not_belong_are_refused() -> None:
    cache = filled(some_readings()[:2], 1)
    with pytest.raises(RuntimeError, match="expected"):
        cache.add(some_readings(images=False)[2])
    with pytest.raises(RuntimeError, match=r"expected .* 7 images"):
        cache.add(some_readings()[0])  # 6 + 3
    with pytest.raises(RuntimeError, match="expected float32"):
        cache.add(Batch(tuple(level.double() for level in some_readings()[2].levels), some_readings()[2].images))
    with pytest.raises(IndexError, match="holds 6"):
        cache.read([6])
    cache.close()
    with pytest.raises(IndexError, match="holds 0"):
        cache.read([0])


def test_every_part_changes_the_key() -> None:
    parts = {
        "images": ["a", "b"],
        "backbone": "resnet18",
        "weights": {"sha256": "1"},
        "layers": ["layer1"],
        "reads": ["features"],
        "preprocess": {"size": [256, 256]},
        "engine": "torch",
    }
    changed = {
        "images": ["b", "a"],
        "backbone": "resnet34",
        "weights": {"sha256": "2"},
        "layers": ["layer1", "layer2"],
        "reads": ["features", "images"],
        "preprocess": {"size": [256, 320]},
        "engine": "openvino",
    }
    key = cache_key(**parts)
    assert key == cache_key(**parts)
    assert len(key) == 64
    for name, value in changed.items():
        assert cache_key(**{**parts, name: value}) != key, name
