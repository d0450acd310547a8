"""Cached features: what comes out is what went in, wherever it lay, and no file stays behind."""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path

import pytest
import torch

from pickglass.errors import InputError
from pickglass.features import cache as cache_module
from pickglass.features.batch import Batch
from pickglass.features.cache import FeatureCache

N, P = 7, 2


def some_batches(keep_in: tuple[int, ...] = (), images: bool = True) -> list[Batch]:
    """N images in batches of 3, 3 and 1; ``keep_in`` are the batches with a mask."""
    torch.manual_seed(0)
    made = []
    for i, b in enumerate((3, 3, 1)):
        levels = (torch.randn(b, P, 4, 6, 5), torch.randn(b, P, 8, 3, 3))
        keep = torch.rand(b, P, 11, 9) > 0.5 if i in keep_in else None
        made.append(Batch(levels, torch.rand(b, P, 3, 11, 9) if images else None, keep))
    return made


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which the test's temporary files lie."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def filled(batches: list[Batch], memory_gb: float) -> FeatureCache:
    cache = FeatureCache(N, memory_gb)
    for batch in batches:
        cache.add(batch)
    return cache


def whole(batches: list[Batch], indices: list[int]) -> Batch:
    """The literal reference: everything concatenated, then indexed."""
    levels = tuple(torch.cat([r.levels[i] for r in batches])[indices] for i in range(2))
    images = None if batches[0].images is None else torch.cat([r.images for r in batches])[indices]
    masks = [torch.ones(len(r.levels[0]), P, 11, 9, dtype=torch.bool) if r.keep is None else r.keep for r in batches]
    keep = torch.cat(masks)[indices]
    return Batch(levels, images, None if keep.all() else keep)


def assert_same(batch: Batch, expected: Batch) -> None:
    for one, other in zip(batch.levels, expected.levels, strict=True):
        assert torch.equal(one, other)
    for one, other in ((batch.images, expected.images), (batch.keep, expected.keep)):
        assert (one is None) == (other is None)
        if one is not None:
            assert torch.equal(one, other)
            assert one.dtype == other.dtype


@pytest.mark.parametrize("memory_gb", [1.0, 0.0], ids=["memory", "file"])
@pytest.mark.parametrize("keep_in", [(), (0, 2), (1,)], ids=["all counts", "some from the start", "some later"])
@pytest.mark.parametrize("images", [True, False])
def test_comes_out_as_it_went_in(memory_gb: float, keep_in: tuple[int, ...], images: bool) -> None:
    batches = some_batches(keep_in, images)
    with filled(batches, memory_gb) as cache:
        assert cache.where == ("memory" if memory_gb else "file")
        assert cache.added == N
        for indices in ([0], [6, 0, 3, 3], list(range(N)), [1, 2]):
            assert_same(cache.read(indices), whole(batches, indices))
        assert_same(cache.read(range(2, 5)), whole(batches, [2, 3, 4]))


def test_what_is_read_is_the_callers_own() -> None:
    batches = some_batches()
    with filled(batches, 1) as cache:
        cache.read([0, 1]).levels[0].zero_()
        assert_same(cache.read([0, 1]), whole(batches, [0, 1]))
        batches[0].levels[0].zero_()
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
            cache.add(some_batches((0,))[0])
            assert (cache.bytes, cache.where) == (exact, where)


def test_the_file_has_no_name_and_so_goes_with_the_process(folder: Path) -> None:
    with filled(some_batches((1,)), 0) as cache:
        assert cache.where == "file"
        assert list(folder.iterdir()) == []


def test_a_full_disk_is_named_before_anything_is_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = cache_module.shutil.disk_usage(folder)._replace(free=1000)
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda _: usage)
    with (
        FeatureCache(N, 0) as cache,
        pytest.raises(InputError, match=r"features of 7 images take 27,384 bytes, 1,000 are free.*raise memory_gb by"),
    ):
        cache.add(some_batches()[0])


def test_a_disk_that_fills_up_meanwhile_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache_module, "_reserve", full)
    with FeatureCache(N, 0) as cache, pytest.raises(InputError, match="free the disk"):
        cache.add(some_batches()[0])


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = cache_module.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with FeatureCache(N, 0) as cache, pytest.raises(InputError, match=r"missing: features cannot be kept .*TMPDIR"):
        cache.add(some_batches()[0])


def test_batches_that_do_not_belong_are_refused() -> None:
    cache = filled(some_batches()[:2], 1)
    with pytest.raises(RuntimeError, match="expected"):
        cache.add(some_batches(images=False)[2])
    with pytest.raises(RuntimeError, match=r"expected .* 7 images"):
        cache.add(some_batches()[0])  # 6 + 3
    with pytest.raises(RuntimeError, match="expected float32"):
        cache.add(Batch(tuple(level.double() for level in some_batches()[2].levels), some_batches()[2].images))
    with pytest.raises(IndexError, match="holds 6"):
        cache.read([6])
    cache.close()
    with pytest.raises(IndexError, match="holds 0"):
        cache.read([0])
