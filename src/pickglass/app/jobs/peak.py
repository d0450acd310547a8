"""Measure the peak memory of this process, and of the GPU where one is used, since a moment; torch is not needed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

__all__ = ["peak_mb", "reset_peak"]


def reset_peak() -> None:
    """Begin to count anew where the system can, which is on Linux and on a GPU."""
    cuda = _cuda()
    if cuda is not None:
        cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # then the peak is that of the process so far, or unknown


def peak_mb() -> float | None:
    """Return the peak of the process, and of the GPU where one is used, in MB; None where the system does not say."""
    cuda = _cuda()
    gpu = 0.0 if cuda is None else cuda.max_memory_allocated() / 1e6
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((float(line.split()[1]) * 1024 / 1e6 + gpu for line in lines if line.startswith("VmHWM:")), None)


def _cuda() -> Any:
    """Return torch's GPU, None where torch is not loaded, and so holds nothing there, or has none."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_available() else None
