"""What all routers share: the settings, the models, and the state folder; one object a server, no globals.

A router asks for it as a parameter of type :data:`TheState`::

    router = APIRouter(prefix="/api/review")

    @router.get("/images")
    def images(state: TheState) -> ...:
        model = state.models.get(None)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request

from pickglass.app.models import AnyModel, load
from pickglass.errors import InputError, UnknownName
from pickglass.web.explorers import Explorers
from pickglass.web.settings import ServeSettings

__all__ = ["Models", "ServedModel", "State", "TheState", "state_of"]


class ServedModel:
    """A model file that is served under a name.

    Attributes:
        name: unique among the served models: the file's name without its suffix, where two are equal with it.
        path: the file.
        model: what judges images now; it is replaced as a whole when the file is.
    """

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.path = path
        self.model: AnyModel = load(path)


class Models:
    """The served models by name, in the order in which they were named."""

    def __init__(self, paths: Sequence[Path]) -> None:
        stems = [path.stem for path in paths]
        names = [path.stem if stems.count(path.stem) == 1 else path.name for path in paths]
        if len(set(names)) < len(names):
            raise InputError(f"two models are named alike: {', '.join(sorted(names))}; rename one of the files")
        self._served = {name: ServedModel(name, path) for name, path in zip(names, paths, strict=True)}

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


class State:
    """One server's settings, models and state folder."""

    def __init__(self, settings: ServeSettings) -> None:
        self.settings = settings
        self.models = Models(settings.models)
        self.explorers = Explorers()
        self.folder = settings.state_folder
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"{self.folder}: cannot be made into a folder ({error.strerror}): name another one with --folder"
            ) from error

    def close(self) -> None:
        """End what runs in the background."""


def state_of(request: Request) -> State:
    """Return the state of the server that got this request."""
    state: State = request.app.state.pickglass
    return state


TheState = Annotated[State, Depends(state_of)]
