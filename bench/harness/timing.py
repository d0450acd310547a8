"""Timing: several calls take turns, so that a machine that is busy with other things slows all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def seconds(call: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the seconds of one call; ``clock=time.process_time`` counts those of all cores, of this process alone."""
    began = clock()
    call()
    return clock() - began


def turns(
    calls: Mapping[str, Callable[[], Any]],
    rounds: int,
    *,
    warm_up: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Time the calls in turn, ``rounds`` times, after ``warm_up`` rounds that do not count: name -> seconds."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(warm_up + rounds):
        for name, call in calls.items():
            took = seconds(call, clock)
            if number >= warm_up:
                found[name].append(took)
    return found


def best(calls: Mapping[str, Callable[[], Any]], rounds: int, *, warm_up: int = 1) -> dict[str, float]:
    """Return the least seconds of each call, timed in turn."""
    return {name: min(values) for name, values in turns(calls, rounds, warm_up=warm_up).items()}


def rate(n: int, call: Callable[[], Any], rounds: int = 3, warm_up: int = 0) -> float:
    """Return how many of ``n`` things a second a call does, the median of the rounds."""
    return n / middle(turns({"": call}, rounds, warm_up=warm_up)[""])


def middle(values: Sequence[float]) -> float:
    """Return the median."""
    return float(statistics.median(values))
