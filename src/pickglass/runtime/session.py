"""A session runs an exported graph: in onnxruntime, or in OpenVINO where that is installed.

Letters: B images, H x W pixels of the canvas, h x w cells of the map, d features.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from pickglass.errors import InputError, MissingExtra, ModelFileError
from pickglass.runtime.compiled import compile_model

__all__ = ["Answer", "RuntimeName", "Session", "import_runtime", "open_session", "usable_cores", "usual_threads"]

RuntimeName = Literal["onnxruntime", "openvino"]

Inputs = Mapping[str, NDArray[Any]]
T = TypeVar("T")
R = TypeVar("R")


class Answer(NamedTuple):
    """What a graph computes of a batch, by the names of its outputs.

    Attributes:
        score: (B,) float32.
        map: (B, h, w) float32, or (B, H, W) where the file was exported so.
        features: (B, d) float32, what ``pickglass drift`` compares; None: the file does not compute them.
    """

    score: NDArray[np.float32]
    map: NDArray[np.float32]
    features: NDArray[np.float32] | None = None


class Session(NamedTuple):
    """A graph is ready to run; any number of threads may call it at once.

    Attributes:
        name: the runtime.
        version: the runtime's.
        run: inputs by name -> answer.
        at_once: so many calls at the same time use the CPU best.
    """

    name: RuntimeName
    version: str
    run: Callable[[Inputs], Answer]
    at_once: int = 1

    def each(self, ask: Callable[[T], R], items: Iterable[T]) -> Iterator[tuple[T, R]]:
        """Give each item and what is answered to it, in order, asking about ``at_once`` of them at the same time."""
        if self.at_once == 1:
            for item in items:
                yield item, ask(item)
            return
        pending: deque[tuple[T, Future[R]]] = deque()
        with ThreadPoolExecutor(self.at_once, "pickglass-session") as pool:
            try:
                for item in items:
                    pending.append((item, pool.submit(ask, item)))
                    if len(pending) > 2 * self.at_once:
                        first, answer = pending.popleft()
                        yield first, answer.result()
                while pending:
                    first, answer = pending.popleft()
                    yield first, answer.result()
            finally:  # who listens no longer waits for what has begun alone
                for _, answer in pending:
                    answer.cancel()


def usual_threads() -> int | None:
    """Return the number of threads that ``OMP_NUM_THREADS`` asks for, as torch obeys it; None: the runtime chooses."""
    text = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(text) if text.isdecimal() and int(text) > 0 else None


def usable_cores() -> int:
    """Return on how many cores this process may run."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def import_runtime(name: str) -> Any:
    """Import a runtime, or a module of it, such that it reports nothing to its maker.

    onnxruntime (1.32, Linux) and OpenVINO (its package openvino-telemetry) otherwise send what they run on to Microsoft
    and to Google Analytics, and keep an id in the home folder. Whoever set ``ORT_DISABLE_TELEMETRY``, or imported
    openvino_telemetry before, is obeyed.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # OpenVINO then has a stub for it
    return importlib.import_module(name)


def open_session(
    name: RuntimeName,
    content: bytes,
    threads: int | None,
    device: str = "cpu",
    source: str = "the file",
    *,
    wide: bool = False,
) -> Session:
    """Make a graph ready to run.

    Args:
        name: the runtime.
        content: all bytes of an ONNX file, which holds its tensors itself.
        threads: that compute at once; None: as many as the runtime likes.
        device: ``"cpu"``; ``"cuda"`` in onnxruntime, where its package for GPUs is installed.
        source: the file's name, for messages.
        wide: many images are to be judged on the CPU: each thread computes a call of its own. One image a call then
            takes longer, and all of them together are done sooner, for what lies between the operations of one image
            stays in the caches.

    Raises:
        MissingExtra: OpenVINO is not installed.
        InputError: the runtime does not run on the device.
        ModelFileError: the runtime refuses the graph.
    """
    if name not in get_args(RuntimeName):
        known = ", ".join(("auto", *get_args(RuntimeName)))
        raise InputError(f"engine={name!r}: {source} is an exported model, which runs in one of {known}")
    if device not in ("cpu", "cuda") or (device == "cuda" and name == "openvino"):
        raise InputError(f"device={device!r} with {name}: expected 'cpu', or 'cuda' with onnxruntime")
    make = _onnxruntime if name == "onnxruntime" else _openvino
    at_once = (threads or usable_cores()) if wide and device == "cpu" else 1
    return make(content, threads, device, source, at_once)


def _onnxruntime(content: bytes, threads: int | None, device: str, source: str, at_once: int) -> Session:
    onnxruntime = import_runtime("onnxruntime")
    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[device]
    if provider not in onnxruntime.get_available_providers():
        raise InputError(
            "device='cuda', but this onnxruntime computes on the CPU alone: install onnxruntime-gpu in its place"
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors, which are raised, too
    if at_once > 1:
        options.intra_op_num_threads = 1
    elif threads is not None:
        options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(content, options, providers=[provider])
    except Exception as error:  # its classes are not public, and derive from Exception alone
        raise _refused("onnxruntime", source, error) from error
    if session.get_providers()[0] != provider:  # it goes to the CPU with a warning where CUDA does not start
        raise InputError(
            f"device='cuda', but onnxruntime could not start it: it would run in {session.get_providers()}"
        )
    names = [output.name for output in session.get_outputs()]
    _check_outputs(set(names), source)

    def run(inputs: Inputs) -> Answer:
        return Answer(**dict(zip(names, session.run(names, dict(inputs)), strict=True)))

    return Session("onnxruntime", str(onnxruntime.__version__), run, at_once)


def _openvino(content: bytes, threads: int | None, device: str, source: str, at_once: int) -> Session:
    try:
        openvino = import_runtime("openvino")
    except ImportError as error:
        raise MissingExtra.needed(f"running {source} in OpenVINO", error) from error
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    if at_once > 1:
        settings.update(NUM_STREAMS=at_once, INFERENCE_NUM_THREADS=at_once)
    elif threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    try:
        compiled = compile_model(openvino, settings, content)
    except Exception as error:  # RuntimeError, or what its parser of protobuf raises
        raise _refused("OpenVINO", source, error) from error
    # an output also has names of values that are passed on to it unchanged
    names = [next((name for name in Answer._fields if name in output.names), "") for output in compiled.outputs]
    _check_outputs(set(names), source)
    own = threading.local()  # a request answers one thread at a time

    def run(inputs: Inputs) -> Answer:
        if not hasattr(own, "request"):
            own.request = compiled.create_infer_request()
        answers = own.request.infer(dict(inputs), share_inputs=True)  # it reads them where they are
        return Answer(**{name: np.array(answers[i]) for i, name in enumerate(names)})

    return Session("openvino", str(openvino.__version__), run, at_once)


def _check_outputs(names: set[str], source: str) -> None:
    if not {"score", "map"} <= names <= set(Answer._fields):
        raise ModelFileError(
            f"{source}: its graph computes {', '.join(sorted(names))}, and not score and map: export the model anew"
        )


def _refused(runtime: str, source: str, error: Exception) -> ModelFileError:
    why = " ".join(str(error).split())[:200]
    return ModelFileError(f"{source}: {runtime} refuses it ({why}): copy the file again, or export the model anew")
