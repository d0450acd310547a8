"""What all routers share: the settings, the models, and the state folder; one object a server, no globals.

A router asks for it as a parameter of type :data:`TheState`::

    router = APIRouter(prefix="/api/review")

    @router.get("/images")
    def images(state: TheState) -> ...:
        model = state.models.get(None)
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request

from pickglass.app.marking.store import MarkStore
from pickglass.app.marking.teach import Teaching
from pickglass.app.review.review import Review
from pickglass.app.review.store import JudgedStore
from pickglass.data.files import remove_leftovers
from pickglass.errors import InputError
from pickglass.web.explorers import Explorers
from pickglass.web.judging import Line
from pickglass.web.metrics import Metrics
from pickglass.web.models import Models, ServedModel
from pickglass.web.places import Places
from pickglass.web.reports import Reports
from pickglass.web.safety import without_paths
from pickglass.web.settings import ServeSettings
from pickglass.web.watching import Folder

__all__ = ["Models", "ServedModel", "State", "TheState", "state_of"]


class State:
    """One server's settings, models, line of images, and state folder.

    Attributes:
        marks: what people said of images, and the log of what was done to models.
        places: the files of images that may be opened for marks.
        teaching: updates of the models by marks.
        reports: the reports of selected images.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self.settings = settings
        self.explorers = Explorers()
        self.folder = settings.state_folder
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"{self.folder}: cannot be made into a folder ({error.strerror}): name another one with --folder"
            ) from error
        self.models = Models(settings.models, settings.compute)
        self.metrics = Metrics()
        self.line = Line(settings.max_requests, settings.max_bytes, settings.compute, self.metrics)
        self.watched: Folder | None = None
        if settings.watch is not None:
            self.watched = Folder(settings.watch, self.models.get(None), self.line, settings)
            self.watched.start()
        remove_leftovers(self.folder)
        self.marks = MarkStore(self.folder / "marks.sqlite")
        self.places = Places(settings, self.folder / "images")
        self.teaching = Teaching(self.folder / "teach", self.marks, settings.compute)
        self.reports = Reports(self.folder / "reports", settings.compute)
        self._review: Review | None = None
        if settings.data is not None:
            self._review = Review(settings.data, JudgedStore(self.folder / "judged.sqlite"), settings.compute)

    @property
    def review(self) -> Review:
        """The data set that is looked through.

        Raises:
            InputError: there is none.
        """
        if self._review is None:
            raise InputError("no data set to look through: start the server with --data FOLDER")
        return self._review

    def public(self, sentence: str) -> str:
        """Return a sentence as anybody may read it: without the folders of this machine."""
        settings, data = self.settings, self.settings.data
        kept = [
            *settings.models,
            self.folder,
            settings.watch,
            *(() if data is None else (data.path, data.roi, *data.more)),
        ]
        return without_paths(sentence, [Path(path).parent for path in kept if path is not None])

    def close(self) -> None:
        """End what runs in the background."""
        if self.watched is not None:
            self.watched.close()
        self.line.close()
        self.reports.close()
        if self._review is not None:
            self._review.close()
        self.teaching.close()
        self.marks.close()
        self.models.close()


def state_of(request: Request) -> State:
    """Return the state of the server that got this request."""
    state: State = request.app.state.pickglass
    return state


TheState = Annotated[State, Depends(state_of)]
