"""Measure the peak memory of this process, and of the GPU where one is used, since a moment."""

from __future__ import annotations

from pathlib import Path

import torch

__all__ = ["peak_mb", "reset_peak"]


def reset_peak() -> None:
    """Begin to count anew where the system can, which is on Linux and on a GPU."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # then the peak is that of the process so far, or unknown


def peak_mb() -> float | None:
    """Return the peak of the process, and of the GPU where one is used, in MB; None where the system does not say."""
    gpu = torch.cuda.max_memory_allocated() / 1e6 if torch.cuda.is_available() else 0.0
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((float(line.split()[1]) * 1024 / 1e6 + gpu for line in lines if line.startswith("VmHWM:")), None)
