"""What machine this is: its processor, what is installed, and the most that it does in matrix products."""

from __future__ import annotations

import importlib.util
import os
import platform
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from pickglass.app.results import BenchMachine, MachineFacts
from pickglass.runtime.session import usable_cores, usual_threads

__all__ = ["about_machine", "describe_machine"]

_SIDE = 2048  # of the matrices
_PRODUCTS = 5  # of which the fastest counts
_PACKAGES = ("pickglass", "numpy", "pillow", "onnxruntime", "openvino", "torch", "onnx")


def describe_machine(device: str) -> Iterator[BenchMachine]:
    """Yield what this machine is, once.

    The peak is that of float32 matrices of 2048 x 2048, the fastest of five products: in torch where it is installed,
    else in numpy; that of a GPU likewise, where one is used.

    Args:
        device: ``"auto"`` is the GPU where torch finds one.
    """
    gpu = _gpu(device)
    gflops, library = _peak("cpu")
    yield {
        **about_machine(),
        "gpu": None if gpu is None else gpu[1],
        "peak_gflops": gflops,
        "peak_library": library,
        "gpu_peak_gflops": None if gpu is None else _peak(gpu[0])[0],
    }


def about_machine() -> MachineFacts:
    """Return what this machine says of itself; nothing is measured."""
    return {
        "cpu": _processor(),
        "cores": usable_cores(),
        "threads": usual_threads(),
        "memory_gb": _memory_gb(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: found for name in _PACKAGES if (found := _version(name)) is not None},
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def _gpu(device: str) -> tuple[str, str] | None:
    """Return the device that torch calls the GPU and what it is; None where none is used, or torch finds none."""
    if device == "cpu" or importlib.util.find_spec("torch") is None:
        return None
    import torch

    if not torch.cuda.is_available():
        return None
    name = "cuda" if device == "auto" else device
    return name, torch.cuda.get_device_name(name)


def _peak(device: str) -> tuple[float, str]:
    """Return billions of operations a second, and what computed them."""
    if importlib.util.find_spec("torch") is None:
        left, right = np.random.default_rng(0).random((2, _SIDE, _SIDE), np.float32)
        return _fastest(lambda: left @ right), "numpy"
    import torch

    a, b = torch.rand(2, _SIDE, _SIDE, device=device)

    def product() -> None:
        torch.mm(a, b)
        if device != "cpu":
            torch.cuda.synchronize()

    return _fastest(product), "torch"


def _fastest(product: Callable[[], Any]) -> float:
    product()
    seconds = []
    for _ in range(_PRODUCTS):
        began = time.perf_counter()
        product()
        seconds.append(time.perf_counter() - began)
    return 2 * _SIDE**3 / min(seconds) / 1e9


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _memory_gb() -> float | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    except (AttributeError, OSError, ValueError):
        return None


def _version(name: str) -> str | None:
    for installed in (name, f"{name}-gpu"):
        try:
            return version(installed)
        except PackageNotFoundError:
            continue
    return None
