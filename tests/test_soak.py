"""Work that goes on in one process leaves no memory, open file or thread behind; bench.soak does more of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench.soak import Course, fits, predictions, requests

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="what a process holds is read from /proc")


def test_a_leak_is_seen() -> None:
    steady, ends = [100.0] * 10, [4] * 10
    assert Course(steady, ends, ends).flat
    assert not Course([100.0 + 9 * i for i in range(10)], ends, ends).flat
    assert not Course(steady, [4] * 9 + [5], ends).flat
    assert not Course(steady, ends, [4] * 9 + [5]).flat


@pytest.mark.slow
@pytest.mark.long
def test_files_and_threads_stay_flat(tmp_path: Path) -> None:
    for course in (predictions(80), requests(10, tmp_path), fits(10, tmp_path)):
        assert course.flat, course
