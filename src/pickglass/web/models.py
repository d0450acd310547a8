"""The served models; when a file is replaced, the new model is made ready beside the old one, then takes over."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from pickglass.app.models import AnyModel
from pickglass.app.watch.model import LoadedModel, WatchedModel
from pickglass.errors import InputError, UnknownName
from pickglass.runtime.compute import ComputeOptions
from pickglass.web.safety import without_paths

__all__ = ["Models", "ServedModel"]

_LOG = logging.getLogger("pickglass.web")
_LOOK = 0.25  # seconds between two looks; a file must be the same at two looks that are half a second apart


class ServedModel:
    """A model file is served under a name.

    Attributes:
        name: unique among the served models: the file's name without its suffix, where two are equal with it.
        path: the file.
        replaced: how often another model took over.
        writing: held by whoever reads the file's version and then writes the file, so that nobody comes between.
    """

    def __init__(self, name: str, path: Path, compute: ComputeOptions) -> None:
        self.name = name
        self.path = path
        self.replaced = 0
        self.writing = threading.Lock()
        self._compute = compute
        self._lock = threading.Lock()
        self._watched = WatchedModel(path, compute, needs_verdicts=False)

    @property
    def now(self) -> LoadedModel:
        """What judges now. Whoever asks more than once for one answer keeps it: another one may take over."""
        return self._watched.now

    @property
    def model(self) -> AnyModel:
        """The detector or exported model that judges now."""
        return self.now.detector

    @property
    def error(self) -> str | None:
        """Why the file that is there now cannot be used, for anybody to read; None: it is the one that judges."""
        error = self._watched.error
        return None if error is None else without_paths(error, [self.path.parent])

    def look(self) -> None:
        """Look whether the file was replaced; a new model is loaded by another thread, and takes over when ready."""
        with self._lock:
            said = self._watched.renew()
        if said is not None:
            self.replaced += 1
            _LOG.warning("%s", said)

    def reload(self) -> LoadedModel:
        """Load the file now, and return what judges from now on: for those who have just written it.

        Raises:
            ModelFileError: it cannot be used; the model before goes on.
        """
        fresh = WatchedModel(self.path, self._compute, needs_verdicts=False)
        with self._lock:
            self._watched.close()
            self._watched = fresh
            self.replaced += 1
        return fresh.now

    def close(self) -> None:
        """Load nothing more."""
        with self._lock:
            self._watched.close()


class Models:
    """The served models by name, in the order in which they were named; a thread looks after their files."""

    def __init__(self, paths: Sequence[Path], compute: ComputeOptions) -> None:
        stems = [path.stem for path in paths]
        names = [path.stem if stems.count(path.stem) == 1 else path.name for path in paths]
        if len(set(names)) < len(names):
            raise InputError(f"two models are named alike: {', '.join(sorted(names))}; rename one of the files")
        self._served = {name: ServedModel(name, path, compute) for name, path in zip(names, paths, strict=True)}
        self._closed = threading.Event()
        self._looking = threading.Thread(target=self._look, name="pickglass-models", daemon=True)
        self._looking.start()

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._served.values())

    def get(self, name: str | None) -> ServedModel:
        """Return the model of a name, None: the first.

        Raises:
            UnknownName: no model of this name is served.
        """
        if name is None:
            return next(iter(self._served.values()))
        if name not in self._served:
            raise UnknownName("model", name, list(self._served), "GET /models")
        return self._served[name]

    def close(self) -> None:
        """Look no more."""
        self._closed.set()
        self._looking.join()
        for served in self:
            served.close()

    def _look(self) -> None:
        while not self._closed.wait(_LOOK):
            for served in self:
                try:
                    served.look()
                except Exception:  # a thread that ends would say nothing
                    _LOG.exception("the file of %r cannot be looked at", served.name)
