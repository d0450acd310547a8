"""The settings with which each method trains as little as it can, for tests in which nothing hangs on the learning."""

from __future__ import annotations

from typing import Any

__all__ = ["LEAST"]

LEAST: dict[str, Any] = {
    "epochs": 1,
    "teacher_epochs": 1,
    "student_epochs": 1,
    "natural": "none",
    "parts": ({"method": "patchcore", "ratio": 0.1}, {"method": "fastflow", "steps": 2, "epochs": 1}),
}
