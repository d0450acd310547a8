"""An engine runs a frozen network: in OpenVINO on a CPU, several times faster than torch, or in torch.

The networks are the backbone and, while images are judged, what a method has learned. The graph goes through ONNX in
memory, which takes a second where the direct conversion takes four. Before the engine is trusted, its answer to the
first batch is compared with torch's.

OpenVINO computes in float32, or where it is told so in bfloat16, which the CPU must have: faster again, with features
that are off by a hundredth (ResNet) to an eighth (EfficientNet-Lite). It is used only where the user asks for it. On a
GPU torch computes in it then.

**Callers.** Any number of threads may call one engine: they share the compiled graph, and each takes an infer request
of its own while it computes. A compiled graph belongs to its process: copies and pickles leave it behind, and after a
fork the child compiles its own.

**Compiled once.** A process keeps what it compiled last of small backbones, and uses it again for another detector with
the same network, weights, layers and size: after a fit that is saved and loaded, for several models of one part, and
for each fit of a study. The next process finds it on the disk (:mod:`pickglass.runtime.compiled`), and
compares it with torch as it does a new one.
"""

from __future__ import annotations

import hashlib
import io
import os
import sys
import warnings
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from pickglass.errors import InputError
from pickglass.features.backbones.registry import OwnBackbone
from pickglass.features.extractor import FeatureExtractor
from pickglass.nn.maps import ProcessLock, cells_of, may_use_bfloat16
from pickglass.nn.networks.stacked import at_position
from pickglass.runtime import compiled as kept_graphs
from pickglass.runtime.compute import EngineName
from pickglass.runtime.session import import_runtime, usual_threads

__all__ = [
    "BackboneEngine",
    "CompiledNetwork",
    "PerPositionEngine",
    "device_name",
    "has_bfloat16",
    "settle_after_fork",
    "to_onnx",
]

_AT_ONCE = {"openvino": 2, "bfloat16": 4}  # images: more of them leave the cache between layers
_KEPT, _KEPT_BYTES = 8, 2**27  # backbones that a process keeps compiled, and the bytes of their weights altogether
_FEW_HEADS = 4  # that are worth compiling, whatever is judged
_TOLERANCE = {"openvino": 1e-3, "bfloat16": 2e-2}  # largest difference from torch, of an output's largest value
_ROUNDED_FEATURES = 0.2  # root mean square of what bfloat16 changes of a backbone's output, of that of its values


class _Watch:
    """A watch notices that a tensor of a network was written to or replaced, as a refit and a loaded state do."""

    def __init__(self) -> None:
        self._tensors: list[Tensor] = []  # held, so that no other gets the address of one
        self._state: list[tuple[int, int]] | None = None

    def changed(self, network: nn.Module) -> bool:
        """Say whether the network is another than when this was asked before; True at first."""
        tensors = [*network.parameters(), *network.buffers()]
        state = [(id(t), t._version) for t in tensors]
        changed = state != self._state
        self._tensors, self._state = tensors, state
        return changed


class _Graph:
    """A compiled graph keeps the infer requests that no thread is using just now."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._idle: deque[Any] = deque()

    def run(self, inputs: Sequence[Tensor], at_once: int) -> list[np.ndarray]:
        """Run (B, ...) inputs, a few images at a time; each answer is copied once, to its place among all."""
        try:
            request = self._idle.pop()  # a request answers one thread at a time
        except IndexError:
            request = self._model.create_infer_request()
        outputs: list[np.ndarray] = []
        n = len(inputs[0])
        for i in range(0, n, at_once):
            part = _arrays(x[i : i + at_once] for x in inputs)
            answers = request.infer(part, share_inputs=True, share_outputs=True).values()
            outputs = outputs or [np.empty((n, *answer.shape[1:]), answer.dtype) for answer in answers]
            for output, answer in zip(outputs, answers, strict=True):
                output[i : i + at_once] = answer
        self._idle.append(request)
        return outputs


class CompiledNetwork:
    """A compiled network runs a frozen network: compiled once for each input size, and again after its weights change.

    A compiled graph keeps a copy of the weights, which is why a change of them makes a new one. Threads may call it at
    once; the first of them compiles, and the others wait for it.

    Args:
        network: takes one or several tensors (B, ...) and returns a tuple of such; it is moved to ``device``.
        what: names the network in messages.
        device: e.g. ``"cpu"`` or ``"cuda"``.
        name: ``"auto"`` is OpenVINO on a CPU and torch elsewhere, and falls back to torch, with a warning, where
            OpenVINO cannot convert the network or answers differently; ``"openvino"`` raises instead.
            ``"bfloat16"`` is OpenVINO in that precision, and torch on a GPU.
        falls_back: whatever the name, to torch with a warning, and from bfloat16 to float32 first.

    Raises:
        InputError: an unknown name, one that does not run on the device, or no bfloat16 there or in this environment.
    """

    def __init__(
        self, network: nn.Module, what: str, device: str, name: EngineName = "auto", *, falls_back: bool = False
    ) -> None:
        known = [engine for engine in get_args(EngineName) if engine != "onnxruntime"]
        if name not in known:
            exported = ", which runs exported models (.onnx) alone" if name == "onnxruntime" else ""
            raise InputError(f"engine={name!r}{exported}: expected one of {', '.join(known)}")
        if name == "openvino" and device != "cpu":
            raise InputError(f"engine={name!r} runs on the CPU, but device={device!r}: leave the engine on 'auto'")
        if name == "bfloat16" and not has_bfloat16(device):
            why = (
                f"device={device!r} does not compute"
                if device != "cpu"
                else "this CPU does not compute"
                if may_use_bfloat16()
                else "ONEDNN_MAX_CPU_ISA keeps this CPU from computing"
            )
            raise InputError(f"engine='bfloat16', but {why} in bfloat16: leave the engine on 'auto'")
        self.network = network.to(device)
        self.what = what
        self.device = device
        self.wanted = name
        self.falls_back = falls_back or name == "auto"
        self.name: Literal["openvino", "bfloat16", "torch"] = (
            "bfloat16" if name == "bfloat16" else "torch" if name == "torch" or device != "cpu" else "openvino"
        )
        self._lock = ProcessLock()
        self._graphs: dict[tuple[torch.Size, ...], _Graph] = {}  # shapes of one image's inputs -> graph
        self._borne: set[tuple[torch.Size, ...]] = set()  # shapes of inputs for which torch may use bfloat16
        self._watch = _Watch()

    @torch.no_grad()
    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run inputs (B, ...) on the CPU: outputs (B, ...) on ``device``, float32."""
        name = self.name
        if name != "torch" and self._compiles:
            graph = self._graph(inputs)
            if graph is not None:
                return tuple(torch.from_numpy(output) for output in graph.run(inputs, _AT_ONCE[name]))
        return self._in_torch(inputs)

    @property
    def _compiles(self) -> bool:
        """Whether OpenVINO runs the network, not torch."""
        return self.device == "cpu"

    def _in_torch(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Run inputs in torch, on a GPU in bfloat16 if so asked and the network bears it."""
        own = [x.to(self.device) for x in inputs]
        if self.name == "bfloat16" and self._bears_bfloat16(own):
            return self._rounded(own)
        outputs: tuple[Tensor, ...] = self.network(*own)
        return outputs

    def _bears_bfloat16(self, inputs: Sequence[Tensor]) -> bool:
        """Say whether torch's answer in bfloat16 may stand for inputs of this size; falls back where it may not."""
        with self._lock as forked:
            if forked or self._watch.changed(self.network):
                self._borne = set()
            if _size(inputs) not in self._borne and self.name == "bfloat16":
                first = [x[:1] for x in inputs]
                exact = tuple(output.cpu() for output in self.network(*first))
                problem = self.problem_of(exact, [output.cpu().numpy() for output in self._rounded(first)])
                if problem is None:
                    self._borne.add(_size(inputs))
                else:
                    self._fall_back(f"in bfloat16 torch {problem}")
            return self.name == "bfloat16"

    def _rounded(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        with torch.autocast(torch.device(self.device).type, torch.bfloat16):
            outputs: tuple[Tensor, ...] = self.network(*inputs)
        return tuple(output.float() for output in outputs)

    def _graph(self, inputs: Sequence[Tensor]) -> _Graph | None:
        """Return the graph for inputs of this size; None: torch runs the network from now on."""
        with self._lock as forked:
            if forked:
                _of_parents.append(self._graphs)
            if forked or self._watch.changed(self.network):
                self._graphs = {}
            size = _size(inputs)
            while size not in self._graphs and self.name != "torch":
                problem = self._prepare(inputs)
                if problem is not None:
                    self._fall_back(f"OpenVINO {problem}")
            return self._graphs.get(size)

    def _prepare(self, inputs: Sequence[Tensor]) -> str | None:
        """Compile for this size and compare with torch; return what is wrong, None if nothing is."""
        first = [x[:1] for x in inputs]
        expected = self.network(*first)
        try:
            graph = _Graph(self.compiled(first))
            problem = self.problem_of(expected, graph.run(first, 1))
            if problem is not None and self.forget(first):
                graph = _Graph(self.compiled(first))
                problem = self.problem_of(expected, graph.run(first, 1))
        except (RuntimeError, ImportError, AttributeError) as error:
            return f"cannot convert it ({type(error).__name__}: {str(error).splitlines()[0]})"
        if problem is None:
            self._graphs[_size(inputs)] = graph
        return problem

    def problem_of(self, expected: tuple[Tensor, ...], got: Sequence[np.ndarray]) -> str | None:
        """Say how the engine answers differently from torch in float32; None where it does not."""
        worst = max(_largest_difference(e, g) for e, g in zip(expected, got, strict=True))
        return _different(worst, _TOLERANCE[self.name], "range")

    def compiled(self, first: Sequence[Tensor]) -> Any:
        """Compile the network for inputs of the size of these."""
        return _compile(self.network, first, self.name)

    def forget(self, first: Sequence[Tensor]) -> bool:
        """Remove what is kept of the network for inputs of this size, which answers wrongly; False: nothing is."""
        return False

    def _fall_back(self, problem: str) -> None:
        message = f"{problem}: {self.what}"
        if not self.falls_back:
            raise InputError(f"{message}. Use engine={'auto' if self.wanted == 'bfloat16' else 'torch'!r}.")
        rounded = self.name == "bfloat16"
        instead = "float32" if rounded else "torch, which is slower"
        warnings.warn(f"{message}; running in {instead}.", RuntimeWarning, stacklevel=5)
        self.name = "openvino" if rounded and self._compiles else "torch"

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles take everything along but the compiled graphs, which are made anew."""
        return {k: v for k, v in self.__dict__.items() if k not in ("_graphs", "_borne", "_watch")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _graphs={}, _borne=set(), _watch=_Watch())


class BackboneEngine(CompiledNetwork):
    """The engine runs a feature extractor: (B, 3, H, W) RGB in [0, 1] on the CPU -> per layer (B, C, h, w).

    Args:
        extractor: moved to ``device``.
        device, name: as of :class:`CompiledNetwork`, with its errors.
    """

    def __init__(self, extractor: FeatureExtractor, device: str, name: EngineName = "auto") -> None:
        super().__init__(extractor, f"{extractor.backbone}, layers {', '.join(extractor.layers)}", device, name)
        self.extractor = extractor

    def compiled(self, first: Sequence[Tensor]) -> Any:
        """Compile the extractor, with what follows from the size of the images as constants, or take a kept one."""

        def compile() -> Any:
            return _compile(self.extractor.for_size(cells_of(first[0])), first, self.name)

        def read_or_compiled(key: str) -> Any:
            model = kept_graphs.kept(import_runtime("openvino"), _settings(self.name), key)
            if model is None:
                model = compile()
                kept_graphs.keep(key, model)
            return model

        key, size_in_bytes = self._key(first)
        return compile() if key is None else _kept.get(key, size_in_bytes, partial(read_or_compiled, key))

    def problem_of(self, expected: tuple[Tensor, ...], got: Sequence[np.ndarray]) -> str | None:
        """Say how the engine answers differently from torch; in bfloat16 single values may be further off.

        Depthwise convolutions take differences of neighbours, which leave much of the rounding and little of the
        value: of EfficientNet-Lite0 on textures of low contrast bfloat16 changes an eighth of the features' root mean
        square, and detection stays as good (``docs/evidence.md``). Learned networks are compared closely, for what
        they answer is compared with something else as close.
        """
        if self.name != "bfloat16":
            return super().problem_of(expected, got)
        worst = max(_rms_difference(e, g) for e, g in zip(expected, got, strict=True))
        return _different(worst, _ROUNDED_FEATURES, "root mean square")

    def forget(self, first: Sequence[Tensor]) -> bool:
        """Remove what this process and the disk keep of the extractor for this size of images."""
        key, _ = self._key(first)
        if key is None:
            return False
        _kept.forget(key)
        kept_graphs.forget(key)
        return True

    def _key(self, first: Sequence[Tensor]) -> tuple[str | None, int]:
        """Return a digest of all that the graph is made of, None where it is not to be kept, and its bytes."""
        tensors = [*self.extractor.parameters(), *self.extractor.buffers()]
        size_in_bytes = sum(tensor.nbytes for tensor in tensors)
        own = isinstance(self.extractor.backbone, OwnBackbone)  # of whose code nothing is known
        if own or size_in_bytes > _KEPT_BYTES:
            return None, size_in_bytes
        about = (self.extractor.backbone, self.extractor.layers, self.extractor.scales, cells_of(first[0]))
        digest = hashlib.sha256()
        for tensor in tensors:
            digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        makers = [getattr(sys.modules.get(name), "__version__", "") for name in ("torch", "torchvision", "timm")]
        parts = (repr(about), repr(makers), digest.digest())
        return kept_graphs.key_of(import_runtime("openvino"), _settings(self.name), *parts), size_in_bytes


class _Kept:
    """What a process compiled last, by a digest of all that it was made of."""

    def __init__(self) -> None:
        self._lock = ProcessLock()
        self._models: OrderedDict[str, tuple[Any, int]] = OrderedDict()

    def get(self, key: str, size: int, compile: Callable[[], Any]) -> Any:
        """Return what is kept under a key, or compile and keep it; the oldest give way."""
        with self._lock as forked:
            if forked:
                _of_parents.append(self._models)
                self._models = OrderedDict()
            if key in self._models:
                self._models.move_to_end(key)
                return self._models[key][0]
        model = compile()
        with self._lock:
            self._models[key] = (model, size)
            while len(self._models) > _KEPT or sum(n for _, n in self._models.values()) > _KEPT_BYTES:
                self._models.popitem(last=False)
        return model

    def forget(self, key: str) -> None:
        """Forget what is kept under a key."""
        with self._lock:
            self._models.pop(key, None)


class PerPositionEngine:
    """This engine runs a network that a method has learned as the other runs the backbone, while images are judged.

    Each position is a graph of its own, compiled when it is first needed: one of all would hold the weights of
    hundreds of tiles at once, more than ONNX can. All are made anew once a tensor of the network was written to or
    replaced: those of a position are views of the old ones. Where the engine cannot be used it falls back to torch with
    a warning, even where it was asked for by name: a training is not to be lost for it. Threads may call it at once.

    Args:
        what: names the network in messages.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._lock = ProcessLock()
        self._watch = _Watch()
        self._engine: tuple[str, EngineName] | None = None  # its device and name
        self._runners: list[CompiledNetwork] = []

    def run(self, engine: BackboneEngine | None, network: nn.Module, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run inputs (B, P, ...) in an engine; without one in torch, with gradients, as in training and in exports.

        Unless an engine was asked for by name, more than four positions run in torch: to compile one takes a second or
        two, which some forty images earn back.
        """
        if engine is None:
            outputs: tuple[Tensor, ...] = network(*inputs)
            return outputs
        if engine.wanted == "auto" and inputs[0].shape[1] > _FEW_HEADS:
            with torch.no_grad():
                outputs = network(*inputs)
            return outputs
        return self(engine, network, *inputs)

    def __call__(self, engine: BackboneEngine, network: nn.Module, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run inputs (B, P, ...) as ``engine`` runs the backbone: outputs (B, P, ...).

        Args:
            engine: in torch it runs this network in torch.
            network: its tensors all lead with P; it may be a new module around the same tensors each time.
            inputs: what the network reads.
        """
        if engine.name == "torch":
            with torch.no_grad():
                outputs: tuple[Tensor, ...] = network(*inputs)
            return outputs
        wanted, whole = (engine.device, engine.wanted), engine.device != "cpu"  # torch runs all positions at once
        with self._lock:
            if self._watch.changed(network) or wanted != self._engine:
                self._engine = wanted
                alone = [network] if whole else [at_position(network, p) for p in range(inputs[0].shape[1])]
                self._runners = [CompiledNetwork(own, self.what, *wanted, falls_back=True) for own in alone]
            runners = self._runners
        if whole:
            return runners[0](*inputs)
        answers = [run(*(x[:, p : p + 1] for x in inputs)) for p, run in enumerate(runners)]
        return tuple(torch.cat(output, dim=1) for output in zip(*answers, strict=True))  # (B, P, ...)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles take no graph along; they are made anew."""
        return {"what": self.what}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


_of_parents: list[Any] = []  # graphs that came with a fork: to delete one would wait for threads that are not there
_kept = _Kept()
_compiling = ProcessLock()  # torch's exporter keeps its state for the whole process
_torch_ready_in = os.getpid()  # the process that torch's thread pool belongs to


def settle_after_fork() -> None:
    """Let torch compute with one thread in a forked child; in any other process this does nothing.

    Torch's thread pool stayed in the parent, and torch would wait for it without end.
    """
    global _torch_ready_in
    if os.getpid() != _torch_ready_in:
        torch.set_num_threads(1)
        _torch_ready_in = os.getpid()


def device_name(name: str) -> str:
    """Resolve ``"auto"`` to the device to compute on, and try any other.

    Raises:
        InputError: the device cannot be used on this machine.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device={name!r} cannot be used here ({str(error).splitlines()[0]}): try 'cpu'") from error
    return name


def has_bfloat16(device: str = "cpu") -> bool:
    """Say whether OpenVINO computes in bfloat16 on this CPU, as the environment lets it, or torch on a GPU."""
    if device != "cpu":
        return torch.device(device).type == "cuda" and torch.cuda.is_bf16_supported()
    openvino = import_runtime("openvino")
    return may_use_bfloat16() and "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _size(inputs: Sequence[Tensor]) -> tuple[torch.Size, ...]:
    return tuple(x.shape[1:] for x in inputs)


def _arrays(inputs: Iterable[Tensor]) -> list[np.ndarray]:
    return [x.contiguous().numpy() for x in inputs]


def _compile(network: nn.Module, example: Sequence[Tensor], name: str) -> Any:
    openvino = import_runtime("openvino")
    names = [f"input{i}" for i in range(len(example))]
    core = openvino.Core()
    model = core.read_model(to_onnx(network, example, names, dynamic_axes={name: {0: "batch"} for name in names}))
    model.reshape({name: [-1, *x.shape[1:]] for name, x in zip(names, example, strict=True)})
    return core.compile_model(model, "CPU", _settings(name))


def _settings(name: str) -> dict[str, Any]:
    """Return what OpenVINO is told of an engine's precision and threads."""
    # where the CPU has bfloat16 the plugin would use it by itself
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "bf16" if name == "bfloat16" else "f32"}
    threads = usual_threads()
    if threads is not None:  # torch reads it, and OpenVINO does not
        settings["INFERENCE_NUM_THREADS"] = threads
    return settings


def to_onnx(network: nn.Module, example: Sequence[Tensor], names: Sequence[str], **options: Any) -> bytes:
    """Return a network as ONNX, traced with these inputs, whose sizes become constants.

    Args:
        network: in eval mode.
        example: its inputs.
        names: what the inputs are called.
        options: others of ``torch.onnx.export``.
    """
    buffer = io.BytesIO()
    with _compiling, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sizes become constants, which is wanted
        torch.onnx.export(
            network,
            tuple(example),
            buffer,  # type: ignore[arg-type]  # the exporter takes files too
            dynamo=False,
            input_names=list(names),
            **options,
        )
    return buffer.getvalue()


def _different(worst: float, allowed: float, of: str) -> str | None:
    if worst <= allowed:
        return None
    return f"answers differently from torch (by {worst:.1e} of an output's {of}, allowed {allowed:.0e})"


def _largest_difference(expected: Tensor, got: np.ndarray) -> float:
    """Return the largest difference of an output, relative to its largest value."""
    if not _comparable(expected, got):
        return float("inf")
    return float(np.abs(expected.numpy() - got).max()) / max(float(expected.abs().max()), 1e-12)


def _rms_difference(expected: Tensor, got: np.ndarray) -> float:
    """Return the root mean square of the differences of an output, relative to that of its values."""
    if not _comparable(expected, got):
        return float("inf")
    exact = expected.double()
    return float((exact - torch.from_numpy(got)).square().mean().sqrt()) / max(
        float(exact.square().mean().sqrt()), 1e-12
    )


def _comparable(expected: Tensor, got: np.ndarray) -> bool:
    return tuple(expected.shape) == got.shape and bool(np.isfinite(got).all())
