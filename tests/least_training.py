"""The settings with which each method trains as little as it can, for tests in which nothing hangs on the learning."""

from __future__ import annotations

from typing import Any

import pytest

from pickglass.methods import METHODS

__all__ = ["LEAST", "few_methods"]

LEAST: dict[str, Any] = {
    "epochs": 1,
    "teacher_epochs": 1,
    "student_epochs": 1,
    "natural": "none",
    "parts": ({"method": "patchcore", "ratio": 0.1}, {"method": "fastflow", "steps": 2, "epochs": 1}),
}


def few_methods(*soon: str) -> list[Any]:
    """All methods as parameters of a test, of which only these run with ``make test``; the others are ``make long``.

    By default one that counts, and one that trains: the code behind the others is shared with these, each method has
    tests of its own, and ``make long`` takes all of them through the conformance suite.
    """
    now = soon or ("patchcore", "fastflow")
    return [name if name in now else pytest.param(name, marks=pytest.mark.long) for name in METHODS]
