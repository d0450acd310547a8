"""Graphs that OpenVINO has compiled are kept on the disk, so that the next process need not trace and compile them.

They lie in ``pickglass/compiled`` in the user's cache folder (``$XDG_CACHE_HOME``, else ``~/.cache``), a file each. A
digest of all that it was made of is its name: the graph or what it is traced from, settings, versions, the CPU. The
environment variable ``PICKGLASS_COMPILED`` names another folder, or is ``off``. The files used last stay, up to
:data:`MOST_BYTES`. Whatever goes wrong with them, a graph is compiled as if they were not there.

OpenVINO's own cache (``CACHE_DIR``) is not used: it has no bound, checks no content, and begins after the tracing,
which takes three quarters of the time.
"""

from __future__ import annotations

import hashlib
import io
import os
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pickglass.data.files import written_whole
from pickglass.errors import PickglassError

__all__ = ["MOST_BYTES", "VARIABLE", "compile_model", "folder", "forget", "keep", "kept", "key_of"]

VARIABLE = "PICKGLASS_COMPILED"
MOST_BYTES = 2**29  # of all files together
_LARGEST = 2**27  # bytes of one: of a larger graph, reading it takes about as long as compiling it
_START = b"pickglass compiled graph 1\n"
_SUFFIX = ".graph"


def folder() -> Path | None:
    """Return the folder of compiled graphs; None: they are not kept, or the folder would be another user's."""
    asked = os.environ.get(VARIABLE, "")
    if asked.strip().lower() in ("off", "0", "no", "false"):
        return None
    try:
        base = os.environ.get("XDG_CACHE_HOME", "")
        cache = Path(base) if os.path.isabs(base) else Path.home() / ".cache"  # a relative one is to be ignored
        place = Path(asked).expanduser() if asked.strip() else cache / "pickglass" / "compiled"
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        # What is read there is run, so nobody else may have written it.
        strange = hasattr(os, "geteuid") and place.stat().st_uid != os.geteuid()
    except (OSError, RuntimeError, ValueError):  # RuntimeError: nobody knows the home folder
        return None
    return None if strange else place


def key_of(openvino: Any, settings: dict[str, Any], *parts: str | bytes) -> str:
    """Return the digest under which a graph is kept.

    Args:
        openvino: the module.
        settings: with which it is compiled.
        parts: what the graph is or is made of.
    """
    core = openvino.Core()
    cpu = [str(core.get_property("CPU", name)) for name in ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES")]
    limits = [os.environ.get(name, "") for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")]
    try:
        ours = version("pickglass")
    except PackageNotFoundError:  # run from its sources
        ours = ""
    about = (ours, openvino.__version__, platform.machine(), cpu, limits, sorted(settings.items()))
    digest = hashlib.sha256(repr(about).encode())
    for part in parts:
        part = part.encode() if isinstance(part, str) else part
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()


def compile_model(openvino: Any, settings: dict[str, Any], content: bytes) -> Any:
    """Compile the graph of an ONNX file for the CPU, or take what was kept of it."""
    key = "" if folder() is None else key_of(openvino, settings, "onnx", content)  # not to be hashed in vain
    model = kept(openvino, settings, key) if key else None
    if model is None:
        core = openvino.Core()
        model = core.compile_model(core.read_model(content), "CPU", settings)
        if key:
            keep(key, model)
    return model


def kept(openvino: Any, settings: dict[str, Any], key: str) -> Any | None:
    """Return the compiled graph that is kept under a key; None: there is none that can be used."""
    path = _path(key)
    if path is None:
        return None
    try:
        content = path.read_bytes()
        start, blob = content[: len(_START) + 32], content[len(_START) + 32 :]
        if start != _START + hashlib.sha256(blob).digest():
            forget(key)
            return None
        model = openvino.Core().import_model(blob, "CPU", settings)
    except FileNotFoundError:
        return None
    except Exception:  # of the disk, or of OpenVINO, whose classes are not public
        forget(key)
        return None
    with suppress(OSError):
        os.utime(path)  # the time of its last use
    return model


def keep(key: str, model: Any) -> None:
    """Keep a compiled graph under a key, if there is room on the disk; those used longest ago give way."""
    path = _path(key)
    if path is None:
        return
    try:
        stream = io.BytesIO()
        model.export_model(stream)
        blob = stream.getvalue()
        if len(blob) > _LARGEST:
            return
        with written_whole(path) as temporary:
            temporary.write_bytes(_START + hashlib.sha256(blob).digest() + blob)
        _tidy(path.parent)
    except (OSError, PickglassError, RuntimeError, MemoryError):
        return


def forget(key: str) -> None:
    """Remove what is kept under a key."""
    path = _path(key)
    if path is not None:
        with suppress(OSError):
            path.unlink()


def _path(key: str) -> Path | None:
    place = folder()
    return None if place is None else place / f"{key}{_SUFFIX}"


def _tidy(place: Path) -> None:
    """Remove the files that were used longest ago, until the rest are within the bound."""
    files = []
    for path in place.glob(f"*{_SUFFIX}"):
        with suppress(OSError):  # another process removed it
            state = path.stat()
            files.append((state.st_mtime_ns, state.st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= MOST_BYTES:
            return
        with suppress(OSError):
            path.unlink()
        total -= size
