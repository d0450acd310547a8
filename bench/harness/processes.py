"""Functions in a process of their own: for peak memory, a fresh start, or the peer's Python."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.harness.records import ROOT


def apart(function: Callable[..., Any], *arguments: Any, python: str | Path | None = None) -> Any:
    """Call a function of a module in a process of its own, and return what it returns.

    Args:
        function: its arguments and its result are what JSON knows; paths become text.
        python: another interpreter, which finds ``bench`` but not pickglass.

    Raises:
        RuntimeError: the process failed; with the last line that it wrote.
    """
    folders = [str(ROOT)] if python else [str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    call = json.dumps([function.__module__, function.__name__, arguments], default=str)
    done = subprocess.run(
        [str(python or sys.executable), "-m", "bench.harness.processes", call],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, folders))},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1])
    return json.loads(done.stdout.splitlines()[-1])


def apart_or_error(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call :func:`apart`; where the process failed, e.g. for want of memory, return {"error": its last line}."""
    try:
        return apart(function, *arguments)
    except RuntimeError as error:
        return {"error": str(error)}


def peak_mb() -> int:
    """Return the most that this process has held, in MB."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    module, name, given = json.loads(sys.argv[1])
    print(json.dumps(getattr(importlib.import_module(module), name)(*given)))
