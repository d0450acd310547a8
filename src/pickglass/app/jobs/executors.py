"""Independent tasks run here, in processes of this machine, or on a Ray cluster.

A task is done by a function that yields a result at a time, so that what is done already is not lost when the rest is.
The executor asks for the next task only when there is room for it, and a worker that dies takes nothing with it but
the task it had.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, Literal, Protocol, TypeVar, cast

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
    """

    task: Task
    result: Result | None = None
    ended: bool = False
    error: str | None = None


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
                        kind, value = "error", f"the worker process died (exit code {process.exitcode})"
                    if kind == "result":
                        yield Event(task, value)
                        continue
                    del running[pipe]
                    process.join()
                    yield Event(task, ended=True, error=value)
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
    except PickglassError as error:  # it says by itself what is wrong
        pipe.send(("error", str(error)))
    except Exception as error:
        pipe.send(("error", f"{type(error).__name__}: {error}"))
    else:
        pipe.send(("end", None))


def _end_with_parent() -> None:
    """End this process when the one that started it was killed, for nobody takes its results any more."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class RayExecutor:
    """Runs tasks on a Ray cluster (extra ``pickglass[cluster]``).

    Its machines need pickglass, and the data and weights under the same paths. Files that results go into are written
    by the asking process alone.

    Args:
        address: address of the cluster, ``"auto"`` for the one that this machine belongs to; None: a Ray that runs
            already in this process, or a new one on this machine.
        cpus, gpus: number that a task needs.
        memory_gb: gigabytes that a task needs.

    Raises:
        MissingExtra: Ray is not installed.
    """

    def __init__(
        self, address: str | None = None, cpus: float = 1.0, gpus: float = 0.0, memory_gb: float = 4.0
    ) -> None:
        try:
            self.ray: Any = import_module("ray")
        except ImportError as error:
            raise MissingExtra.needed("executor 'ray'", error) from error
        self.address = address
        self.cpus = cpus
        self.gpus = gpus
        self.memory_gb = memory_gb

    def run(
        self, function: Callable[[Task], Iterator[Result]], take: Callable[[], Task | None]
    ) -> Iterator[Event[Task, Result]]:
        """Run all tasks; see :class:`Executor`."""
        ray = self.ray
        ours = not ray.is_initialized()
        if ours:
            try:
                ray.init(address=self.address, log_to_driver=False)
            except (ConnectionError, ValueError) as error:
                raise InputError(
                    f"no Ray cluster at address={self.address!r} ({error}): start one, or leave it out"
                ) from error
        needs = {"num_cpus": self.cpus, "num_gpus": self.gpus, "memory": int(self.memory_gb * 1e9)}
        remote = ray.remote(**needs, max_retries=0)(function).options(num_returns="streaming")
        running: dict[Any, Task] = {}
        try:
            while True:
                while len(running) < self._room() and (task := take()) is not None:
                    running[remote.remote(task)] = task
                if not running:
                    return
                ready, _ = ray.wait(list(running), num_returns=1)
                for stream in ready:
                    yield self._next(stream, running)
        finally:
            for stream in running:
                ray.cancel(stream, force=True)
            if ours:
                ray.shutdown()

    def _next(self, stream: Any, running: dict[Any, Task]) -> Event[Task, Any]:
        try:
            return Event(running[stream], self.ray.get(next(stream)))
        except StopIteration:
            return Event(running.pop(stream), ended=True)
        except self.ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None)  # of an exception in the task itself
            text = f"the Ray task died: {error}" if cause is None else f"{type(cause).__name__}: {cause}"
            return Event(running.pop(stream), ended=True, error=text)

    def _room(self) -> int:
        """Count the tasks that the whole cluster has room for; tasks beyond would only be kept from other users."""
        total = self.ray.cluster_resources()
        needs = {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory_gb * 1e9}
        fits = [total.get(name, 0.0) / need for name, need in needs.items() if need > 0]
        if not fits or min(fits) < 1:
            have = ", ".join(f"{total.get(name, 0.0):g} {name}" for name in needs)
            raise InputError(f"no task fits the Ray cluster: it has {have} (memory in bytes); a task wants {needs}")
        return int(min(fits))


@dataclass(frozen=True)
class Where:
    """The place where independent tasks run.

    Attributes:
        executor: ``"local"``, or ``"ray"`` (extra ``pickglass[cluster]``).
        parallel: tasks at once on this machine, for ``"local"``.
        address: address of the Ray cluster, see :class:`RayExecutor`.
        cpus, gpus: what a Ray task needs.
        memory_gb: budget in gigabytes of each task at once; a Ray task asks for it.
    """

    executor: Literal["local", "ray"] = "local"
    parallel: int = 1
    address: str | None = None
    cpus: float = 1.0
    gpus: float = 0.0
    memory_gb: float = 4.0

    def make(self) -> Executor:
        """Make the executor.

        Raises:
            InputError: no executor has this name, or ``parallel`` is below 1.
            MissingExtra: Ray is not installed.
        """
        if self.executor == "local":
            return LocalExecutor(self.parallel)
        if self.executor == "ray":
            return RayExecutor(self.address, self.cpus, self.gpus, self.memory_gb)
        raise InputError(f"executor={self.executor!r}: expected 'local' or 'ray'")

    @property
    def threads(self) -> int | None:
        """The number of torch's threads in each task, so that tasks do not fight; None: torch's own choice."""
        if self.parallel == 1 or self.executor != "local":
            return None
        return max(1, (os.cpu_count() or 1) // self.parallel)
