"""Independent tasks run here, in processes of this machine, or on a Ray cluster.

A task is done by a function that yields a result at a time, so that what is done already is not lost when the rest is.
The executor asks for the next task only when there is room for it, and a worker that dies takes nothing with it but
the task it had.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, Literal, Protocol, TypeVar, cast

from pickglass.data.copies import callers_copies
from pickglass.errors import InputError, MissingExtra, PickglassError

__all__ = ["Event", "Executor", "LocalExecutor", "RayExecutor", "Where"]

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True)  # a generic NamedTuple needs Python 3.11
class Event(Generic[Task, Result]):
    """A task yielded a result, or ended.

    Attributes:
        task: the task.
        result: None at the end.
        ended: whether nothing more will come.
        error: why it ended early; None if it did not.
        died: whether its worker or the machine was lost, so that another try may end well.
    """

    task: Task
    result: Result | None = None
    ended: bool = False
    error: str | None = None
    died: bool = False


class Executor(Protocol):
    """An executor runs tasks and reports their events."""

    def run(
        self, function: Callable[[Task], Iterator[Result]], take: Callable[[], Task | None]
    ) -> Iterator[Event[Task, Result]]:
        """Run all tasks, and yield their events as they come.

        Args:
            function: importable by name; yields the results of a task.
            take: the next task, None if there is none now; asked again after each task's end.
        """
        ...


class LocalExecutor:
    """Runs tasks on this machine.

    Args:
        workers: tasks at once; 1 runs them in this process, more of them each in a process of its own.
        apart: each task has a process of its own in any case, so that it finds nothing of the others in memory.
    """

    def __init__(self, workers: int = 1, *, apart: bool = False) -> None:
        if workers < 1:
            raise InputError(f"workers={workers!r}: expected at least 1")
        self.workers = workers
        self.apart = apart or workers > 1

    def run(
        self, function: Callable[[Task], Iterator[Result]], take: Callable[[], Task | None]
    ) -> Iterator[Event[Task, Result]]:
        """Run all tasks; see :class:`Executor`. In this process an error of the function is raised."""
        return self._apart(function, take) if self.apart else self._here(function, take)

    def _here(
        self, function: Callable[[Task], Iterator[Result]], take: Callable[[], Task | None]
    ) -> Iterator[Event[Task, Result]]:
        while (task := take()) is not None:
            for result in function(task):
                yield Event(task, result)
            yield Event(task, ended=True)

    def _apart(
        self, function: Callable[[Task], Iterator[Result]], take: Callable[[], Task | None]
    ) -> Iterator[Event[Task, Result]]:
        context = get_context("spawn")  # a forked child of a process with threads may hang
        running: dict[Connection, tuple[Any, Task]] = {}
        try:
            while True:
                while len(running) < self.workers and (task := take()) is not None:
                    receiving, sending = context.Pipe(duplex=False)
                    process = context.Process(target=_work, args=(sending, function, task), daemon=True)
                    process.start()
                    sending.close()  # the child's end alone is left: it closes when the child dies
                    running[receiving] = (process, task)
                if not running:
                    return
                for pipe in cast("list[Connection]", wait(list(running))):
                    process, task = running[pipe]
                    value: Any
                    try:
                        kind, value = pipe.recv()
                    except EOFError:
                        process.join()
                        kind, value = "died", f"the worker process died (exit code {process.exitcode})"
                    if kind == "result":
                        yield Event(task, value)
                        continue
                    del running[pipe]
                    process.join()
                    yield Event(task, ended=True, error=value, died=kind == "died")
        finally:
            for process, _ in running.values():
                process.terminate()


def _work(pipe: Connection, function: Callable[[Any], Iterator[Any]], task: Any) -> None:
    """Run one task in a child process, and send its results."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        for result in function(task):
            pipe.send(("result", result))
    except BrokenPipeError:
        return  # whoever asked is gone
    except Exception as error:
        pipe.send(("error", _said(error)))
    else:
        pipe.send(("end", None))


def _end_with_parent() -> None:
    """End this process when the one that started it was killed, for nobody takes its results any more."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _said(error: BaseException) -> str:
    """Return what is reported of a task's error; those of pickglass say by themselves what is wrong."""
    return str(error) if isinstance(error, PickglassError) else f"{type(error).__name__}: {error}"


class RayExecutor:
    """Runs tasks on a Ray cluster (extra ``pickglass[cluster]``).

    Its machines need pickglass, and the data, the models and the weights under the same absolute paths: a folder that
    all of them mount. The variables ``PICKGLASS_*`` of the asking process hold in the tasks as well.

    Args:
        address: address of the cluster, ``"auto"`` for the one that this machine belongs to; None: a Ray that runs
            already in this process, or a new one on this machine.
        cpus, gpus: number that a task needs.
        memory_gb: gigabytes that a task needs.
        most: tasks at once; None: as many as the cluster has room for.

    Raises:
        InputError: a task that needs nothing, or less than that; or ``most`` below 1.
        MissingExtra: Ray is not installed.
    """

    def __init__(
        self,
        address: str | None = None,
        cpus: float = 1.0,
        gpus: float = 0.0,
        memory_gb: float = 4.0,
        most: int | None = None,
    ) -> None:
        needs = {"cpus": cpus, "gpus": gpus, "memory_gb": memory_gb}
        if not (all(value >= 0 for value in needs.values()) and any(needs.values())):
            listed = ", ".join(f"{name}={value!r}" for name, value in needs.items())
            raise InputError(f"{listed}: expected what a Ray task needs, none of them below 0 and one of them above")
        if most is not None and most < 1:
            raise InputError(
                f"{most!r} Ray tasks at once: expected at least 1, or None for as many as there is room for"
            )
        try:
            self.ray: Any = import_module("ray")
        except ImportError as error:
            raise MissingExtra.needed("executor 'ray'", error) from error
        self.address = address
        self.cpus = cpus
        self.gpus = gpus
        self.memory_gb = memory_gb
        self.most = most

    def run(
        self, function: Callable[[Task], Iterator[Result]], take: Callable[[], Task | None]
    ) -> Iterator[Event[Task, Result]]:
        """Run all tasks; see :class:`Executor`."""
        ray = self.ray
        ours = not ray.is_initialized()
        if ours:
            self._connect()
        needs = {"num_cpus": self.cpus, "num_gpus": self.gpus, "memory": int(self.memory_gb * 1e9)}
        remote = ray.remote(**needs, max_retries=0)(_on_cluster).options(num_returns="streaming")
        environment = {name: value for name, value in os.environ.items() if name.startswith("PICKGLASS_")}
        running: dict[Any, Task] = {}
        try:
            while True:
                while len(running) < self._room() and (task := take()) is not None:
                    running[remote.remote(function, environment, task)] = task
                if not running:
                    return
                # now and then the room is looked at again: machines come, and the last one may go
                ready, _ = ray.wait(list(running), num_returns=1, timeout=_LOOK)
                for stream in ready:
                    yield self._next(stream, running)
        finally:
            for stream in running:
                ray.cancel(stream, force=True)
            if ours:
                ray.shutdown()

    def _connect(self) -> None:
        """Begin to talk to the cluster, or start one."""
        try:
            _check_listens(self.address)
            self.ray.init(address=self.address, log_to_driver=False)
        except (OSError, ValueError, OverflowError, RuntimeError) as error:
            said = " ".join(str(error).split())[:200]
            raise InputError(
                f"no Ray cluster at address={self.address!r} ({said}): start one with 'ray start', or leave it out"
            ) from error

    def _next(self, stream: Any, running: dict[Any, Task]) -> Event[Task, Any]:
        try:
            return Event(running[stream], self.ray.get(next(stream)))
        except StopIteration:
            return Event(running.pop(stream), ended=True)
        except self.ray.exceptions.RayError as error:
            task = running.pop(stream)
            cause = getattr(error, "cause", None)  # of an exception in the task itself
            if cause is not None:
                return Event(task, ended=True, error=_said(cause))
            self.ray.cancel(stream, force=True)  # where a result alone was lost, what made it may still run
            said = " ".join(str(error).split())[:300]
            return Event(task, ended=True, error=f"the Ray task died: {said}", died=True)

    def _room(self) -> int:
        """Count the tasks that the machines have room for; tasks beyond would only be kept from other users."""
        needs = {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory_gb * 1e9}
        machines = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        room = sum(
            min(int(machine.get(name, 0.0) / need + 1e-9) for name, need in needs.items() if need > 0)
            for machine in machines  # a task needs all of it on one of them
        )
        if not room:
            have = " | ".join(_listed({name: machine.get(name, 0.0) for name in needs}) for machine in machines)
            raise InputError(
                f"a task wants {_listed(needs)}, and no machine of the Ray cluster has that "
                f"({have[:200] or 'none is there'}): ask for less (cpus, gpus, memory_gb), or add a machine"
            )
        return room if self.most is None else min(room, self.most)


_LOOK = 10.0  # seconds


def _on_cluster(function: Callable[[Any], Iterator[Any]], environment: Mapping[str, str], task: Any) -> Iterator[Any]:
    """Run one task in a worker of the cluster, which was started before anybody asked and has its own environment."""
    os.environ.update(environment)
    with callers_copies():
        for result in function(task):  # noqa: UP028  (Ray sends values in, which not every iterator takes)
            yield result


def _check_listens(address: str | None) -> None:
    """Ask whether somebody listens at ``host:port``; Ray would wait for minutes and then end this process.

    Raises:
        OSError, ValueError, OverflowError: nobody does, or the port is none.
    """
    host, colon, port = (address or "").rpartition(":")
    if colon and address is not None and "/" not in address:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _listed(amounts: Mapping[str, float]) -> str:
    parts = [(f"{value / 1e9:g} GB" if name == "memory" else f"{value:g} {name}") for name, value in amounts.items()]
    return ", ".join(parts)


@dataclass(frozen=True)
class Where:
    """The place where independent tasks run.

    Attributes:
        executor: ``"local"``, or ``"ray"`` (extra ``pickglass[cluster]``).
        parallel: tasks at once; None: one here, and on Ray as many as there is room for.
        address: address of the Ray cluster, see :class:`RayExecutor`.
        cpus, gpus: what a Ray task needs.
        memory_gb: budget in gigabytes of each task at once; a Ray task asks for it.
    """

    executor: Literal["local", "ray"] = "local"
    parallel: int | None = None
    address: str | None = None
    cpus: float = 1.0
    gpus: float = 0.0
    memory_gb: float = 4.0

    def make(self) -> Executor:
        """Make the executor.

        Raises:
            InputError: no executor has this name, ``parallel`` is below 1, or what belongs to Ray is given without it.
            MissingExtra: Ray is not installed.
        """
        if self.executor == "local":
            for name in ("address", "cpus", "gpus"):
                if getattr(self, name) != getattr(Where, name):
                    raise InputError(
                        f"{name}={getattr(self, name)!r} belongs to executor 'ray': set that, or leave it out"
                    )
            return LocalExecutor(1 if self.parallel is None else self.parallel)
        if self.executor == "ray":
            return RayExecutor(self.address, self.cpus, self.gpus, self.memory_gb, self.parallel)
        raise InputError(f"executor={self.executor!r}: expected 'local' or 'ray'")

    @property
    def threads(self) -> int | None:
        """The number of torch's threads in each task, so that tasks do not fight; None: torch's own choice."""
        if self.parallel in (None, 1) or self.executor != "local":
            return None
        return max(1, (os.cpu_count() or 1) // (self.parallel or 1))
